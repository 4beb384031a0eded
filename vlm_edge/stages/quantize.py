"""Quantize: every component's weights to INT8, and its linear layers to integer arithmetic that the engine fuses.

Ranges come from NNCF on the task's own calibration samples; the graph is then written in the target's form. Each
component is checked on held-out samples against its float graph, and one that strays falls back to a safer scheme.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.stage import Level, StageConfig, StageInputs, StageSpec, StageWork, Ticker
from vlm_edge.errors import VlmEdgeError
from vlm_edge.names import near

if TYPE_CHECKING:
    import onnx

    from vlm_edge.numerics.quant_forms import QuantForm
    from vlm_edge.numerics.quant_nncf import Feed, Feeds
    from vlm_edge.numerics.quantization import Agreement
    from vlm_edge.processing.manifest import Component, PipelineManifest
    from vlm_edge.stages.quantize_capture import Captured

Scheme = Literal["int8", "int8-dynamic", "int8-weights", "none"]
EVERY = "*"
MIN_COSINE = 0.98
"""A component whose outputs on held-out samples have a smaller cosine with the float outputs is not accepted."""
GOOD_COSINE = 0.995
"""Below this, a more careful variant of the same scheme is tried, and the better one is taken."""

ATTEMPTS: dict[str, tuple[str, ...]] = {
    "int8": ("int8", "int8-smooth", "int8-weights"),
    "int8-dynamic": ("int8-dynamic", "int8-weights"),
    "int8-weights": ("int8-weights",),
}
"""What is tried for each scheme, in this order; the last, float arithmetic, only where nothing before it is accepted.
``int8-smooth`` is int8 after SmoothQuant, which costs a multiplication before some layers."""

PASSES = {"int8": 1, "int8-smooth": 2}
"""How often NNCF reads the calibration inputs."""


class QuantizeConfig(StageConfig):
    """``quantize: {components: {"*": int8}}``.

    ``int8``: calibrated, integer arithmetic. ``int8-dynamic``: integer arithmetic with ranges taken as it runs
    (onnxruntime). ``int8-weights``: int8 on disk, float arithmetic. ``none``: the component stays float.
    """

    components: dict[str, Scheme] = Field(default={EVERY: "int8"}, description="scheme by component; '*': all others")
    samples: int = Field(default=256, ge=2, le=100_000, description="calibration samples, of which 1 in 8 is held out")


def run(config: QuantizeConfig, inputs: StageInputs, work: StageWork) -> None:
    """Write the quantized graphs and the manifest; ``work.facts`` holds each component's scheme, size and errors."""
    from vlm_edge.data import load_dataset
    from vlm_edge.numerics.quant_forms import quant_form, resolve_isa
    from vlm_edge.processing.manifest import copy_side_files, read_manifest, write_manifest
    from vlm_edge.stages.quantize_capture import capture_inputs

    assert inputs.task is not None
    assert inputs.target is not None
    source, target = inputs.source.path, inputs.target
    manifest = read_manifest(source)
    schemes = resolve_schemes(config, manifest, target.engine)
    isa = resolve_isa(target.isa, target.engine)
    form = quant_form(target.engine, isa)
    dataset = load_dataset(inputs.task.data, "calibration", limit=config.samples)
    scratch = work.scratch / "calibration"
    capture = capture_inputs(source, manifest, dataset, scratch, target.threads, work.progress)
    work.facts.update(isa=isa, calibration_samples=capture.samples, held_out_samples=capture.held_out)
    if capture.skipped:
        work.facts["skipped_images"] = capture.skipped
    copy_side_files(source, work.out, manifest)
    facts: dict[str, Any] = {}
    for name, component in manifest.components.items():
        facts[name] = _quantize_component(
            name, component, schemes[name], source, capture.components[name], form, target.threads, work
        )
    work.facts["components"] = facts
    precision = {name: fact["scheme"] for name, fact in facts.items()}
    write_manifest(work.out, manifest.model_copy(update={"precision": precision}))
    shutil.rmtree(scratch)


def resolve_schemes(config: QuantizeConfig, manifest: PipelineManifest, engine: str) -> dict[str, Scheme]:
    """The scheme of every component of the manifest.

    Raises:
        VlmEdgeError: a component is unknown or has no scheme, or the engine has no such scheme.
    """
    known = list(manifest.components)
    for name in config.components:
        if name != EVERY and name not in known:
            raise VlmEdgeError(f"quantize.components: {name!r} is no component of this model", near(name, known))
    schemes: dict[str, Scheme] = {}
    for name in known:
        scheme = config.components.get(name, config.components.get(EVERY))
        if scheme is None:
            raise VlmEdgeError(
                f"quantize.components: no scheme for {name!r}", f"add {name!r}, or '{EVERY}' for all others"
            )
        if scheme == "int8-dynamic" and engine != "onnxruntime":
            raise VlmEdgeError(
                f"quantize.components.{name}: int8-dynamic is onnxruntime's; the target's engine is {engine}",
                "use int8 or int8-weights",
            )
        schemes[name] = scheme
    return schemes


def _quantize_component(
    name: str,
    component: Component,
    scheme: Scheme,
    source: Path,
    captured: Captured,
    form: QuantForm,
    threads: int,
    work: StageWork,
) -> dict[str, Any]:
    """Write one component with the first scheme that is accepted, and return its facts.

    Raises:
        VlmEdgeError: none is accepted.
    """
    import onnx

    from vlm_edge.numerics.qdq_report import quantized_ops
    from vlm_edge.numerics.quant_prepare import fold_transposed_constants, with_node_names
    from vlm_edge.stages.quantize_layers import layer_errors

    original = source / component.file
    path = work.out / component.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if scheme == "none":
        for file in sorted(original.parent.glob(f"{original.name}*")):
            shutil.copyfile(file, path.with_name(file.name))
        return {"asked": "none", "scheme": "none"}
    model = onnx.load(original)
    tried: list[Attempt] = []
    for attempt in ATTEMPTS[scheme]:
        best = max((other.cosine for other in tried), default=-1.0)
        if best >= (MIN_COSINE if attempt == "int8-weights" else GOOD_COSINE):
            break
        total = PASSES.get(attempt, 0) * len(captured.calibration) + 1
        with work.progress.bar(f"quantize {name} ({attempt})", total) as ticker:
            graph = quantize_graph(model, attempt, _Ticking(captured.calibration, ticker), form)
            path.write_bytes(graph.SerializeToString(deterministic=True))
            tried.append(Attempt(attempt, graph, _check(path, component, captured, threads)))
            ticker.advance()
    chosen = max(tried, key=lambda attempt: attempt.cosine)
    facts = [{"scheme": attempt.scheme, "cosine": round(attempt.cosine, 6)} for attempt in tried]
    if chosen.cosine < MIN_COSINE:
        raise VlmEdgeError(
            f"quantize: {name}: its outputs stray from the float graph's: "
            + ", ".join(f"{attempt.scheme}: cosine {attempt.cosine:.5f} ({attempt.worst})" for attempt in tried)
            + f"; at least {MIN_COSINE} is needed",
            f"leave it in floating point: components: {{{name}: none}}",
        )
    path.write_bytes(chosen.graph.SerializeToString(deterministic=True))
    floating = with_node_names(fold_transposed_constants(model))
    smoothed = chosen.scheme == "int8-smooth"
    return {
        "asked": scheme,
        "scheme": chosen.scheme,
        "attempts": facts,
        "outputs": {
            output: {"cosine": round(value.cosine, 6), "sqnr_db": round(value.sqnr_db, 2)}
            for output, value in chosen.outputs.items()
        },
        "float_size_bytes": original.stat().st_size,
        "size_bytes": path.stat().st_size,
        "operators": quantized_ops(chosen.graph).as_facts(),
        "layers": layer_errors(floating, chosen.graph, captured.held_out, threads, weights=not smoothed),
    }


@dataclass(frozen=True)
class Attempt:
    """A quantized graph, and how its outputs agree with the float graph's."""

    scheme: str
    graph: onnx.ModelProto
    outputs: dict[str, Agreement]

    @property
    def worst(self) -> str:
        return min(self.outputs, key=lambda output: self.outputs[output].cosine)

    @property
    def cosine(self) -> float:
        return self.outputs[self.worst].cosine


class _Ticking:
    """Feeds that advance a progress bar as they are read."""

    def __init__(self, feeds: Feeds, ticker: Ticker) -> None:
        self._feeds = feeds
        self._ticker = ticker

    def __iter__(self) -> Iterator[Feed]:
        for feed in self._feeds:
            yield feed
            self._ticker.advance()

    def __len__(self) -> int:
        return len(self._feeds)


def quantize_graph(model: onnx.ModelProto, scheme: str, feeds: Feeds, form: QuantForm) -> onnx.ModelProto:
    """One float graph in one scheme (``int8``, ``int8-smooth``, ``int8-dynamic``, ``int8-weights``) and form.

    Raises:
        VlmEdgeError: NNCF can't quantize it.
    """
    from vlm_edge.numerics.qdq_graph import without_notes
    from vlm_edge.numerics.qdq_lower import dynamic_linears, lower_linears
    from vlm_edge.numerics.qdq_retarget import retarget_activations, sink_quantizers, symmetric_activations
    from vlm_edge.numerics.quant_nncf import calibrate
    from vlm_edge.numerics.quant_prepare import fold_smoothing, fold_transposed_constants, with_node_names
    from vlm_edge.numerics.quant_weights import compress_tables, compress_weights

    graph = with_node_names(fold_transposed_constants(model))
    if scheme in ("int8", "int8-smooth"):
        graph = calibrate(graph, feeds, form, smooth=scheme == "int8-smooth")
        graph = fold_smoothing(graph)
        graph = symmetric_activations(graph) if form.symmetric else retarget_activations(graph, signed=form.signed)
        if form.kernels:
            graph = lower_linears(sink_quantizers(graph))
    elif scheme == "int8-dynamic":
        graph = dynamic_linears(graph, weight_bits=form.weight_bits)
    graph = compress_weights(graph, decompression=form.decompression)
    graph = compress_tables(graph, decompression=None if form.kernels else form.decompression)
    return without_notes(graph)


def _check(path: Path, component: Component, captured: Captured, threads: int) -> dict[str, Agreement]:
    """Agreement of every output with the float graph's on the held-out runs, on onnxruntime."""
    from vlm_edge.engines import load_engine
    from vlm_edge.numerics.quantization import agreement

    engine = load_engine("onnxruntime", path, component, threads, {"graph_optimization": "basic"})
    pairs = (
        (reference, engine.infer(feed)) for feed, reference in zip(captured.held_out, captured.references, strict=True)
    )
    return agreement(pairs)


SPEC = StageSpec(
    name="quantize",
    version=2,
    level=Level.GRAPH,
    config=QuantizeConfig,
    output=ArtifactKind.GRAPHS,
    run=run,
    packages=("nncf", "onnx", "onnxruntime", "numpy"),
    reads=frozenset({"task", "target"}),
    host_bound=True,
    summary="INT8 weights and integer linear layers, calibrated on the task's own samples",
)
