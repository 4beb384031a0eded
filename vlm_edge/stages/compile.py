"""Compile: graphs into what the target's engine loads, each component checked against the graph it was made of."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.stage import StageConfig, StageInputs, StageSpec, StageWork
from vlm_edge.errors import VlmEdgeError

if TYPE_CHECKING:
    from vlm_edge.core.target import Target
    from vlm_edge.processing.manifest import Component, EngineInfo, PipelineManifest
    from vlm_edge.stages.compile_check import ReferenceEngine

_SCALES = {
    **{"QuantizeLinear": (1,), "DequantizeLinear": (1,), "MatMulNBits": (2,), "GatherBlockQuantized": (2,)},
    **{"QLinearMatMul": (1, 4, 6), "QLinearConv": (1, 4, 6)},
}
"""Which inputs of an operator are scales."""
OPENVINO_SMALLEST_SHARED = 65536
"""With fixed shapes OpenVINO 2026.4 computes in float where two layers read one scale or zero point: ViT-B/32 took 2.5
times as long. Tables and weights of this many bytes may be shared."""


class CompileConfig(StageConfig):
    """``compile: {}``.

    ``full``: the graph is rewritten into what measured fastest on the target's engine. ``runtime``: the graph as it
    is, which the engine optimizes by itself when it loads it; that is how a variant without a compile stage is run.
    """

    optimize: Literal["runtime", "full"] = "full"
    tune_seconds: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="seconds of searching a component for the fastest forms of its INT8 layers; 0: no search",
    )
    max_batch: int = Field(
        default=16, ge=1, le=4096, description="largest batch of an engine with fixed bounds (TensorRT)"
    )


def run(config: CompileConfig, inputs: StageInputs, work: StageWork) -> None:
    """Write the engine folder; ``work.facts`` holds each component's agreement, size and what was done to it.

    Raises:
        VlmEdgeError: the engine can't run here, can't take a graph, or strays from it.
    """
    from vlm_edge.engines import load_engine, require_engine
    from vlm_edge.processing.manifest import copy_side_files, read_manifest, write_manifest
    from vlm_edge.stages.compile_check import check_component, float_engine, reference_runs

    assert inputs.target is not None
    source, target = inputs.source.path, inputs.target
    require_engine(target.engine)
    manifest = read_manifest(source)
    copy_side_files(source, work.out, manifest)
    rows: dict[str, Component] = {}
    facts: dict[str, Any] = {}
    with work.progress.bar("compile", 2 * len(manifest.components) + 1) as ticker:
        references = reference_runs(source, manifest, target.threads, work.seed, work.scratch)
        ticker.advance(note="compiling")
        for name, component in manifest.components.items():
            require_sound_scales(source / component.file)
            rows[name], facts[name] = _compile_component(
                config, source, component, references[name], target, manifest, work
            )
            ticker.advance(note=name)
        compiled = manifest.model_copy(update={"components": rows, "engine": engine_info(target)})
        for name, row in rows.items():
            engine = load_engine(
                target.engine,
                work.out / row.file,
                row,
                row.threads or target.threads,
                compiled.engine.options if compiled.engine else None,
            )
            graph = source / manifest.components[name].file
            integer = holds_integers(graph)
            facts[name] |= {"size_bytes": _size_bytes(work.out, row.file), "integer": integer}
            floating = functools.partial(float_engine, graph, manifest.components[name], work.scratch)
            facts[name] |= check_component(name, engine, references[name], floating if integer else None)
            ticker.advance(note=f"{name} checked")
    shutil.rmtree(work.scratch / "runs")
    write_manifest(work.out, compiled)
    work.facts.update(engine=target.engine, optimize=config.optimize, components=facts)


def engine_info(target: Target) -> EngineInfo:
    """The manifest's ``engine``: name, version, threads and options."""
    from vlm_edge.engines import engine_version
    from vlm_edge.processing.manifest import EngineInfo
    from vlm_edge.stages.compile_onnxruntime import OPTIONS

    return EngineInfo(
        name=target.engine,
        version=engine_version(target.engine),
        threads=target.threads,
        options=OPTIONS if target.engine == "onnxruntime" else {},
    )


def holds_integers(path: Path) -> bool:
    """Whether a graph has 8-bit or 4-bit constants, so that it is compared as an INT8 one."""
    import onnx_ir as ir

    from vlm_edge.graphs.files import load_graph

    integers = (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT4, ir.DataType.INT4)
    return any(value.dtype in integers and value.shape for value in load_graph(path).graph.initializers.values())


def require_sound_scales(path: Path) -> None:
    """Nothing, if every constant scale of a graph's integer layers is a finite number other than 0.

    Raises:
        VlmEdgeError: one is not: all that it scales would become 0 or no number.
    """
    import numpy as np

    from vlm_edge.graphs.edit import constant, optional_input
    from vlm_edge.graphs.files import load_graph

    for node in load_graph(path).graph:
        for place in _SCALES.get(node.op_type, ()):
            value = optional_input(node, place)
            scales = constant(value)
            numbers = np.ones(1) if scales is None else scales.astype(np.float32)
            if value is not None and not (np.isfinite(numbers) & (numbers != 0)).all():
                raise VlmEdgeError(
                    f"{path}: the scale {value.name} holds 0 or what is no finite number", "quantize the model again"
                )


def _compile_component(
    config: CompileConfig,
    source: Path,
    component: Component,
    reference: ReferenceEngine,
    target: Target,
    manifest: PipelineManifest,
    work: StageWork,
) -> tuple[Component, dict[str, Any]]:
    graph, name, out = source / component.file, Path(component.file).stem, work.out
    if target.engine == "tensorrt":
        from vlm_edge.backends.tensorrt.rules import require_tensorrt_rules
        from vlm_edge.engines.tensorrt import build_plan, dimension_ranges

        require_tensorrt_rules(graph)
        build_plan(graph, component, dimension_ranges(manifest, config.max_batch), out / f"{name}.plan")
        return component.model_copy(update={"file": f"{name}.plan"}), {}
    from vlm_edge.stages.compile_onnxruntime import compile_component, threads_worth

    full = config.optimize == "full"
    to_ir = full and target.engine == "openvino"
    folder = work.scratch if to_ir else out
    row, facts = compile_component(
        graph,
        folder / f"{name}.onnx",
        component,
        reference,
        target.threads,
        work.scratch,
        full=full and not to_ir,
        tune_seconds=config.tune_seconds,
        smallest_shared=OPENVINO_SMALLEST_SHARED if target.engine == "openvino" else 0,
    )
    if not to_ir:
        return row, facts
    from vlm_edge.engines.openvino import write_ir
    from vlm_edge.stages.compile_check import float_engine
    from vlm_edge.stages.compile_openvino import tuned_row

    write_ir(work.scratch / row.file, out / f"{name}.xml")
    for path in work.scratch.glob(f"{row.file}*"):
        path.unlink()
    facts |= threads_worth(graph, reference.runs[0][0], target.threads)
    row = row.model_copy(update={"file": f"{name}.xml", "threads": facts["threads"]})
    if not config.tune_seconds or not holds_integers(graph):
        return row, facts
    floating = functools.partial(float_engine, graph, component, work.scratch)
    row, facts["tuned"] = tuned_row(name, out / row.file, row, reference, floating)
    return row, facts


def _size_bytes(folder: Path, file: str) -> int:
    """The component's file, and the weights beside it."""
    return sum(path.stat().st_size for path in folder.glob(f"{Path(file).stem}.*"))


SPEC = StageSpec(
    name="compile",
    version=5,
    config=CompileConfig,
    source=ArtifactKind.GRAPHS,
    output=ArtifactKind.ENGINE,
    run=run,
    packages=("onnx", "onnxruntime", "openvino", "tensorrt"),
    reads=frozenset({"target"}),
    host_bound=True,
    implied={"optimize": "runtime"},
    summary="Compile graphs into an engine for the target, each component checked against its graph.",
)
