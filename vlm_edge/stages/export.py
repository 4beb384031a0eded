"""Export: one ONNX graph per component, each checked against torch, and all of them against the model's answers."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.stage import Level, StageConfig, StageInputs, StageSpec, StageWork

if TYPE_CHECKING:
    from vlm_edge.families.checkpoint import LoadedCheckpoint
    from vlm_edge.processing.manifest import Component, PipelineManifest


class ExportConfig(StageConfig):
    """How graphs are written and how close they must be."""

    opset: int = Field(default=20, ge=20, le=23, description="ONNX operator set; 20 is what INT8 tools fuse best")
    tolerance: float = Field(
        default=1e-4, gt=0, lt=1, description="largest difference from torch, relative to an output's largest value"
    )
    dtype: Literal["float32"] = "float32"
    trust_remote_code: bool = Field(
        default=False, description="run the model code that a checkpoint brings along; read it first"
    )


def run(config: ExportConfig, inputs: StageInputs, work: StageWork) -> None:
    """Checkpoint -> GRAPHS: ``COMPONENT.onnx`` each, ``tokenizer.json`` and ``manifest.json``.

    Everything is written and checked in ``work.scratch`` first, so a failed check leaves nothing in ``work.out``.
    Facts: ``parity`` (worst differences from torch by component), ``composed`` (what all graphs together were
    compared on), ``graphs`` (nodes and bytes by component).

    Raises:
        VlmEdgeError: the checkpoint can't be loaded or exported, or a graph differs from the model by more than
            ``tolerance``.
    """
    from vlm_edge.families.checkpoint import load_checkpoint
    from vlm_edge.processing.manifest import write_manifest
    from vlm_edge.stages.export_check import OneAtATime, check_component, load_graph, return_freed_memory
    from vlm_edge.stages.export_composed import check_pipeline
    from vlm_edge.stages.export_generate import check_generation
    from vlm_edge.stages.export_graph import export_component, graph_facts

    loaded = load_checkpoint(inputs.source.path, trust_remote_code=config.trust_remote_code)
    family = loaded.family
    folder = work.scratch / "graphs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    exports = family.components(loaded.model, family.image_processing(loaded.folder))
    components: dict[str, Component] = {}
    work.facts.update(parity={}, graphs={})
    with work.progress.bar("export", 2 * len(exports) + 1) as ticker:
        for name, export in exports.items():
            components[name] = export_component(name, export, folder, config.opset)
            ticker.advance(note=name)
            path = folder / components[name].file
            graph = load_graph(path, components[name])
            work.facts["parity"][name] = check_component(name, export, graph, config.tolerance)
            del graph  # so that the next component is exported without this one's session in memory
            return_freed_memory()
            work.facts["graphs"][name] = graph_facts(path)
            ticker.advance(note=name)
        manifest = _manifest(loaded, components)
        graphs = OneAtATime(folder, components)
        if manifest.pipeline == "generate":
            work.facts["composed"] = check_generation(loaded, manifest, graphs, config.tolerance)
        else:
            work.facts["composed"] = check_pipeline(loaded, manifest, graphs.engines, config.tolerance)
        graphs.release()
        ticker.advance(note="composed")
    for text in (manifest.text, manifest.prompt and manifest.prompt.instruction):
        if text:
            (folder / text.tokenizer).parent.mkdir(exist_ok=True)
            shutil.copyfile(loaded.folder / text.tokenizer, folder / text.tokenizer)
    write_manifest(folder, manifest)
    for path in sorted(folder.iterdir()):
        shutil.move(path, work.out / path.name)


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
    version=1,
    level=Level.GRAPH,
    config=ExportConfig,
    output=ArtifactKind.GRAPHS,
    run=run,
    packages=("torch", "transformers", "onnx", "onnxscript", "onnx-ir"),
    reads=frozenset(),
    summary="One ONNX graph per component, checked against torch",
)
