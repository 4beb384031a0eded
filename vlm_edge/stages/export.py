"""Export: one ONNX graph per component, each checked against torch, and all of them against the model's answers."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from vlm_edge.backends import backend, backends
from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.stage import Named, Progress, StageConfig, StageInputs, StageSpec, StageWork
from vlm_edge.errors import VlmEdgeError
from vlm_edge.facts import ExportFacts

if TYPE_CHECKING:
    from pathlib import Path

    from vlm_edge.families.loading import LoadedCheckpoint
    from vlm_edge.processing.manifest import Component, Generation, PipelineManifest
    from vlm_edge.stages.export_answers import Answer
    from vlm_edge.stages.export_composed import Outputs


class ExportConfig(StageConfig):
    """Settings of the graphs, and the tolerance that they are checked with."""

    opset: int = Field(default=20, ge=20, le=23, description="ONNX operator set; 20 is what INT8 tools fuse best")
    tolerance: float = Field(
        default=1e-4, gt=0, lt=1, description="largest difference from torch, relative to an output's largest value"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32",
        description="of weights and activations; 16-bit graphs are float32 wherever the samples show that they must be",
    )
    samples: int = Field(
        default=32, ge=2, le=100_000, description="calibration samples that a 16-bit graph is measured and checked on"
    )
    trust_remote_code: bool = Field(
        default=False, description="run the model code that a checkpoint brings along; read it first"
    )


def splits(config: ExportConfig) -> tuple[Literal["calibration"], ...]:
    """The parts of the task's data that the stage reads."""
    return () if config.dtype == "float32" else ("calibration",)


def faults(config: ExportConfig, named: Named) -> list[tuple[str, str]]:
    """(setting, what is wrong) of a type that the engine has no kernels for."""
    engine = named.target.engine
    if config.dtype in (known := backend(engine).dtypes):
        return []
    others = " and ".join(spec.name for spec in backends().values() if config.dtype in spec.dtypes)
    return [("dtype", f"{engine} computes in {' or '.join(known)}; {config.dtype} is for {others}")]


def run(config: ExportConfig, inputs: StageInputs, work: StageWork) -> None:
    """Checkpoint -> GRAPHS: ``COMPONENT.onnx`` each, ``tokenizer.json`` and ``manifest.json``.

    Everything is written and checked in ``work.scratch`` first, so a failed check leaves nothing in ``work.out``.
    A 16-bit ``dtype`` then turns the checked graphs into 16-bit ones, which are checked against them: see
    :mod:`vlm_edge.stages.export_half`.
    Facts: ``parity`` (worst differences from torch by component), ``composed`` (what all graphs together were
    compared on), ``tokens`` (how many of ``generate``'s answers among it), ``graphs`` (nodes and bytes by component),
    ``generation_not_followed`` (settings of generation_config.json that decoding leaves out, where there are any),
    ``half`` (of 16-bit graphs).

    Raises:
        VlmEdgeError: the checkpoint can't be loaded or exported, or a graph differs from the model by more than
            ``tolerance``.
    """
    from vlm_edge.checked import first_fault
    from vlm_edge.processing.manifest import write_manifest
    from vlm_edge.stages.export_check import new_objects_only

    folder, references = work.scratch / "graphs", work.scratch / "references"
    shutil.rmtree(work.scratch, ignore_errors=True)
    for path in (folder, references):
        path.mkdir(parents=True)
    source = inputs.source.path
    try:
        with new_objects_only():
            folder, manifest = _checked_graphs(config, inputs, folder, references, work)
    except ValidationError as error:
        raise VlmEdgeError(
            f"{source}: no device runs such a model: {error.title}: {first_fault(error)}", "see its configuration files"
        ) from error
    write_manifest(folder, manifest)
    for path in sorted(folder.iterdir()):
        shutil.move(path, work.out / path.name)
    shutil.rmtree(work.scratch)


def _checked_graphs(
    config: ExportConfig, inputs: StageInputs, folder: Path, references: Path, work: StageWork
) -> tuple[Path, PipelineManifest]:
    """Write the graphs into ``folder`` and hold each, then all together, to what torch says; fills ``work.facts``.

    Returns:
        The folder of the graphs that were asked for, another one where they are 16-bit, and their manifest.
    """
    from vlm_edge.stages.export_check import OneAtATime, check_component, return_freed_memory
    from vlm_edge.stages.export_composed import check_pipeline
    from vlm_edge.stages.export_graph import graph_facts
    from vlm_edge.stages.export_references import saved_references

    source = inputs.source.path
    manifest, wanted = _by_torch(config, source, folder, references, work.progress)
    _copy_tokenizers(source, folder, manifest)
    return_freed_memory()  # the model's: from here on one graph is in memory, and nothing of torch's
    graphs = OneAtATime(folder, manifest.components)
    tokens = sum(len(answer.tokens) for answer in wanted) if isinstance(wanted, list) else 0
    work.facts.update(parity={}, graphs={}, tokens=tokens)
    if manifest.generation and manifest.generation.not_followed:
        work.facts["generation_not_followed"] = manifest.generation.not_followed
        work.progress.remark(_left_out(manifest.generation))
    with work.progress.bar("check", len(graphs.engines) + 1) as ticker:
        for name, graph in graphs.engines.items():
            parity = check_component(name, saved_references(name, references), graph, config.tolerance)
            work.facts["parity"][name] = parity
            work.facts["graphs"][name] = graph_facts(folder / manifest.components[name].file)
            ticker.advance(note=name)
        work.facts["composed"] = check_pipeline(source, manifest, graphs.engines, wanted, config.tolerance)
        graphs.release()
        ticker.advance(note="composed")
    if config.dtype == "float32":
        return folder, manifest
    from vlm_edge.stages.export_half import answer_tolerance, random_runs, task_runs, write_half

    if inputs.task is None:
        runs = random_runs(folder, manifest, work)
    else:
        runs = task_runs(folder, manifest, inputs.task, config.samples, work)
    folder, manifest = write_half(config.dtype, folder, manifest, runs, work)
    _copy_tokenizers(source, folder, manifest)
    graphs = OneAtATime(folder, manifest.components)
    tolerance = answer_tolerance(config.dtype)
    work.facts["half"]["composed"] = check_pipeline(source, manifest, graphs.engines, wanted, tolerance)
    work.facts["graphs"] = {name: graph_facts(folder / each.file) for name, each in manifest.components.items()}
    return folder, manifest


def _copy_tokenizers(source: Path, folder: Path, manifest: PipelineManifest) -> None:
    for text in (manifest.text, manifest.prompt and manifest.prompt.instruction):
        if text:
            (folder / text.tokenizer).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / text.tokenizer, folder / text.tokenizer)


def _left_out(generation: Generation) -> str:
    """A line about the settings that decoding does not follow."""
    named = ", ".join(f"{name}: {value}" for name, value in generation.not_followed.items())
    return (
        f"warning: generation_config.json asks for what decoding here does not do: {named}; the most probable token is "
        "taken each time, in the baseline as on the device, so answers can differ from those of `generate`"
    )


def _by_torch(
    config: ExportConfig, source: Path, folder: Path, references: Path, progress: Progress
) -> tuple[PipelineManifest, list[Answer] | Outputs]:
    """All that needs the model, which is in memory no longer than this takes: what each graph must give, what all of
    them together must answer, and the graphs, last because torch.onnx leaves 0.3 GB behind."""
    from vlm_edge.families.loading import load_checkpoint
    from vlm_edge.families.parts.language_family import fused_attention
    from vlm_edge.processing.manifest import Component
    from vlm_edge.stages.export_check import return_freed_memory
    from vlm_edge.stages.export_composed import torch_says
    from vlm_edge.stages.export_graph import export_component
    from vlm_edge.stages.export_ids import check_ids
    from vlm_edge.stages.export_references import save_references

    loaded = load_checkpoint(source, trust_remote_code=config.trust_remote_code)
    exports = loaded.family.components(loaded.model, loaded.family.image_processing(source))
    planned = {name: Component.model_construct(file=f"{name}.onnx", inputs={}, outputs={}) for name in exports}
    manifest = _manifest(loaded, planned)
    check_ids(source, manifest, exports)
    with progress.bar("export", 2 * len(exports) + 1) as ticker:
        with fused_attention(loaded.model.get_submodule(loaded.family.vision_tower_path)):
            for name, export in exports.items():
                return_freed_memory()
                save_references(name, export, references)
                ticker.advance(note=name)
            return_freed_memory()
            wanted = torch_says(loaded, manifest)
            ticker.advance(note="composed")
        components = {}
        for name, export in exports.items():
            return_freed_memory()
            components[name] = export_component(name, export, folder, config.opset)
            ticker.advance(note=name)
    for tensor in (*loaded.model.parameters(), *loaded.model.buffers()):
        tensor.data = tensor.data.new_empty(0)  # whoever still holds the model, its weights are gone
    return manifest.model_copy(update={"components": components}), wanted


def _manifest(loaded: LoadedCheckpoint, components: dict[str, Component]) -> PipelineManifest:
    from vlm_edge.processing.manifest import PipelineManifest

    family = loaded.family
    return PipelineManifest.model_validate(
        {
            "family": family.name,
            "pipeline": family.pipeline,
            "components": components,
            "image": family.image_processing(loaded.folder),
            "text": family.text_processing(loaded.folder),
            "prompt": family.prompt(loaded.folder),
            "generation": family.generation(loaded.folder),
            "labels": family.labels(loaded.model),
            "logit_scale": family.logit_scale(loaded.model),
            "logit_bias": family.logit_bias(loaded.model),
            "precision": dict.fromkeys(components, "float32"),
        }
    )


SPEC = StageSpec(
    name="export",
    version=7,
    config=ExportConfig,
    source=ArtifactKind.CHECKPOINT,
    output=ArtifactKind.GRAPHS,
    run=run,
    facts=ExportFacts,
    check=faults,
    splits=splits,
    optional=frozenset({"task"}),
    baseline={"dtype": "float32"},
    packages=("torch", "transformers", "onnx", "onnxscript", "onnx-ir"),
    implied={},
    summary="Export a model to one ONNX graph per component, each checked against torch.",
)
