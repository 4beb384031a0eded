"""One component's graph in INT8: what is tried, how it is checked, and which layers stay float."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_edge.errors import VlmEdgeError
from vlm_edge.stages.quantize_config import QuantizeConfig, Scheme

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from vlm_edge.core.stage import Progress
    from vlm_edge.numerics.calibration import Calibration, Feed, Feeds
    from vlm_edge.numerics.quant_forms import QuantForm
    from vlm_edge.numerics.quant_static import StaticGraph, StaticSettings
    from vlm_edge.numerics.quantization import Agreement
    from vlm_edge.numerics.sensitivity import Sensitivity
    from vlm_edge.processing.manifest import Component
    from vlm_edge.stages.quantize_capture import Captured

MIN_COSINE = 0.98
"""A component whose outputs on held-out samples have a smaller cosine with the float outputs is not accepted."""
MIN_SQNR_DB = 20.0
"""Noisier integer layers are left float one after another, the worst first (20 dB: a cosine of 0.995)."""
GOOD_COSINE = 0.999
"""Below this, a more careful variant of the same scheme is tried, and the best one is taken."""
MOST_LEFT_OUT = 0.5
"""Unless a recipe sets the bound, a component of which more layers would have to stay float gets int8 weights only."""
RANKED_ON = 4
"""Held-out runs that layers are ranked on: each takes one run for each layer."""
LARGEST_RANKED_BYTES = 400 * 10**6
"""Layers of larger graphs are ranked only where the ranking decides something."""

BLOCK_OF_4_BITS, BLOCK_OF_8_BITS, BLOCK_OF_TENSORRT = 32, 128, 64
"""Most input channels that share a scale. 4 bits: 64 are 1.1 times as fast, but 0.9 dB noisier, and 128 are half as
fast on OpenVINO. 8 bits have accuracy to spare, and 128 are 1.2 times as fast as 32. TensorRT takes 64 and 128 for
4 bits ("Quantization Schemes")."""


@dataclass(frozen=True)
class Attempt:
    """A quantized graph, and how its outputs agree with the float graph's."""

    scheme: str
    graph: onnx.ModelProto
    outputs: dict[str, Agreement]
    static: StaticGraph | None = None
    settings: StaticSettings | None = None

    @property
    def worst(self) -> str:
        return min(self.outputs, key=lambda output: self.outputs[output].cosine)

    @property
    def cosine(self) -> float:
        return self.outputs[self.worst].cosine

    @property
    def sqnr_db(self) -> float:
        return min(each.sqnr_db for each in self.outputs.values())

    def as_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"scheme": self.scheme, "cosine": round(self.cosine, 6)}
        if self.settings is not None:
            facts |= {"ranges": self.settings.ranges, "float_layers": len(self.settings.left_out)}
        return facts


def quantize_graph(
    model: onnx.ModelProto, scheme: str, feeds: Feeds, form: QuantForm, *, settings: StaticSettings | None = None
) -> onnx.ModelProto:
    """One float graph in one scheme (those of a recipe but ``none``, and ``int8-smooth``) and form.

    Raises:
        VlmEdgeError: there is no input to calibrate on, or NNCF can't quantize it.
    """
    from vlm_edge.numerics.calibration import Calibration
    from vlm_edge.numerics.quant_prepare import fold_transposed_constants, with_node_names
    from vlm_edge.numerics.quant_static import StaticSettings, static_graph

    floating = with_node_names(fold_transposed_constants(model))
    settings = settings or StaticSettings(smooth=scheme == "int8-smooth")
    if scheme not in ("int8", "int8-smooth"):
        return lowered(floating, scheme, form, settings.left_out)
    static = static_graph(floating, Calibration(feeds), feeds, form, settings)
    return lowered(static.quantized, scheme, form, settings.left_out)


def lowered(
    graph: onnx.ModelProto, scheme: str, form: QuantForm, left_out: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """A prepared graph (``int8`` and ``int8-smooth``: with its Q/DQ pairs) in a target's form."""
    from vlm_edge.numerics.activation_fusion import fuse_silu
    from vlm_edge.numerics.qdq_convolutions import lower_convolutions
    from vlm_edge.numerics.qdq_graph import without_notes
    from vlm_edge.numerics.qdq_lower import block_linears, dynamic_linears, lower_linears
    from vlm_edge.numerics.qdq_openvino import chosen_masks, float_concatenations
    from vlm_edge.numerics.qdq_retarget import retarget_activations, symmetric_activations
    from vlm_edge.numerics.quant_weights import compress_blocks, compress_tables, compress_weights
    from vlm_edge.numerics.tensorrt_form import tensorrt_form

    if scheme in ("int8", "int8-smooth"):
        graph = symmetric_activations(graph) if form.symmetric else retarget_activations(graph, signed=form.signed)
        if form.kernels:
            graph = lower_convolutions(lower_linears(graph))
        elif not form.symmetric:
            graph = chosen_masks(float_concatenations(graph))
    elif scheme == "int8-dynamic":
        graph = dynamic_linears(graph, weight_bits=form.weight_bits)
    elif scheme == "int4-weights" and form.symmetric:
        graph = compress_blocks(graph, block_size=BLOCK_OF_TENSORRT, left_out=left_out)
    elif scheme == "int4-weights":
        graph = block_linears(graph, bits=4, largest_block=BLOCK_OF_4_BITS, left_out=left_out)
    elif scheme == "int8-weights" and form.kernels and form.weight_bits == 8 and _takes_steps(graph):
        graph = block_linears(graph, bits=8, largest_block=BLOCK_OF_8_BITS, left_out=left_out)
    graph = compress_weights(graph, decompression=form.decompression, left_out=left_out)
    graph = compress_tables(graph, decompression=None if form.kernels else form.decompression)
    if form.kernels:
        graph = fuse_silu(graph)
    return without_notes(tensorrt_form(graph) if form.symmetric else graph)


def _takes_steps(graph: onnx.ModelProto) -> bool:
    """Whether it is a decoder with a cache, which runs on one row at a time."""
    return any(value.name.startswith("past_key_values") for value in graph.graph.input)


class ComponentQuantizer:
    """Quantizes one component with the first scheme that is accepted."""

    def __init__(
        self,
        name: str,
        component: Component,
        source: Path,
        out: Path,
        *,
        captured: Captured,
        calibration: Calibration,
        form: QuantForm,
        config: QuantizeConfig,
        kept: frozenset[str],
        threads: int,
        progress: Progress,
    ) -> None:
        self.name = name
        self.component = component
        self.original = source / component.file
        self.path = out / component.file
        self.captured = captured
        self.calibration = calibration
        self.form = form
        self.config = config
        self.kept = kept
        self.threads = threads
        self.progress = progress

    def run(self, scheme: Scheme) -> dict[str, Any]:
        """Write the component's graph, and return its facts.

        Raises:
            VlmEdgeError: no scheme is accepted.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if scheme == "none":
            for file in sorted(self.original.parent.glob(f"{self.original.name}*")):
                shutil.copyfile(file, self.path.with_name(file.name))
            return {"asked": "none", "scheme": "none"}
        import onnx

        from vlm_edge.numerics.quant_prepare import fold_transposed_constants, with_node_names
        from vlm_edge.numerics.tensorrt_rules import require_tensorrt_rules

        self.floating = with_node_names(fold_transposed_constants(onnx.load(self.original)))
        tried: list[dict[str, Any]] = []
        chosen: Attempt | None = None
        for attempt in self._attempts(scheme):
            tried.append(attempt.as_facts() | {"worst": attempt.worst})
            if chosen is None or attempt.cosine > chosen.cosine:
                chosen = attempt
            if self._good(chosen):
                break
        assert chosen is not None
        ranked: list[Sensitivity] = []
        if chosen.static is not None:
            chosen, ranked = self._left_float(chosen, tried)
        if scheme != "int8-weights" and chosen.cosine < MIN_COSINE:
            weights = self._plain("int8-weights")
            tried.append(weights.as_facts() | {"worst": weights.worst})
            chosen = max(chosen, weights, key=lambda attempt: attempt.cosine)
        if chosen.cosine < MIN_COSINE:
            raise VlmEdgeError(
                f"quantize: {self.name}: its outputs stray from the float graph's: "
                + ", ".join(f"{each['scheme']}: cosine {each['cosine']:.5f} ({each['worst']})" for each in tried)
                + f"; at least {MIN_COSINE} is needed",
                f"leave it in floating point: components: {{{self.name}: none}}",
            )
        self.path.write_bytes(chosen.graph.SerializeToString(deterministic=True))
        if self.form.symmetric:
            require_tensorrt_rules(self.path)
        return self._facts(scheme, chosen, tried, ranked)

    def _attempts(self, scheme: Scheme) -> Iterator[Attempt]:
        """What is tried for a scheme, the cheapest first."""
        from vlm_edge.numerics.quant_static import StaticSettings

        if scheme != "int8":
            yield self._plain(scheme)
            return
        auto = self.config.ranges == "auto"
        for ranges in ("minmax", "mse") if auto else (self.config.ranges,):
            for smooth in (False, True):
                yield self._static(StaticSettings(ranges, self.config.percentile, smooth, self.kept))

    def _good(self, attempt: Attempt) -> bool:
        wanted = self.config.min_sqnr_db
        return attempt.cosine >= GOOD_COSINE and (wanted is None or attempt.sqnr_db >= wanted)

    def _plain(self, scheme: str) -> Attempt:
        graph = lowered(self.floating, scheme, self.form, self.kept)
        return Attempt(scheme, graph, self._check(graph))

    def _static(self, settings: StaticSettings) -> Attempt:
        from vlm_edge.numerics.quant_static import static_graph

        scheme = "int8-smooth" if settings.smooth else "int8"
        static = static_graph(self.floating, self.calibration, self.captured.held_out, self.form, settings)
        graph = lowered(static.quantized, scheme, self.form, settings.left_out)
        return Attempt(scheme, graph, self._check(graph), static, settings)

    def _check(self, graph: onnx.ModelProto) -> dict[str, Agreement]:
        self.path.write_bytes(graph.SerializeToString(deterministic=True))
        return check(self.path, self.component, self.captured, self.threads)

    def _left_float(self, chosen: Attempt, tried: list[dict[str, Any]]) -> tuple[Attempt, list[Sensitivity]]:
        """The attempt with the fewest layers float that meets the bound, and the ranking."""
        bound = MIN_SQNR_DB if self.config.min_sqnr_db is None else self.config.min_sqnr_db
        missed = chosen.sqnr_db < bound
        if not missed and (self.config.sensitivity == "none" or self.floating.ByteSize() > LARGEST_RANKED_BYTES):
            return chosen, []
        from vlm_edge.numerics.sensitivity import SwitchedGraph, fewest_left_out, rank_layers

        assert chosen.static is not None
        assert chosen.settings is not None
        graphs = chosen.static.floating, chosen.static.quantized
        switched = SwitchedGraph(*graphs, self.threads, outputs=self.form.kernels)
        feeds = spread(self.captured.held_out, RANKED_ON)
        with self.progress.bar(f"rank layers of {self.name}", None):
            ranked = rank_layers(switched, feeds)
        if not missed:
            return chosen, ranked
        start = max(1, len(fewest_left_out(switched, ranked, feeds, bound)))
        most = len(ranked) if self.config.min_sqnr_db is not None else int(MOST_LEFT_OUT * len(ranked))
        best = chosen
        for count in _rising(start, most):
            nodes = frozenset(each.layer.node for each in ranked[:count])
            best = self._static(replace(chosen.settings, left_out=self.kept | nodes))
            tried.append(best.as_facts() | {"worst": best.worst})
            if best.sqnr_db >= bound:
                return best, ranked
        if self.config.min_sqnr_db is not None:
            raise VlmEdgeError(
                f"quantize: {self.name}: {best.sqnr_db:.1f} dB with all {most} layers float; "
                f"min_sqnr_db asks for {bound:g}",
                f"give a lower min_sqnr_db, or leave it in floating point: components: {{{self.name}: none}}",
            )
        return max(chosen, best, key=lambda attempt: attempt.cosine), ranked

    def _facts(
        self, scheme: Scheme, chosen: Attempt, tried: list[dict[str, Any]], ranked: Sequence[Sensitivity]
    ) -> dict[str, Any]:
        from vlm_edge.numerics.qdq_layers import layer_names
        from vlm_edge.numerics.qdq_report import quantized_ops
        from vlm_edge.stages.quantize_layers import layer_errors

        smoothed = chosen.scheme == "int8-smooth"
        layers = layer_errors(self.floating, chosen.graph, self.captured.held_out, self.threads, weights=not smoothed)
        sensitivities = {output: each for each in ranked for output in each.layer.outputs}
        for layer in layers:
            each = sensitivities.get(layer.pop("output"))
            layer["sensitivity_db"] = None if each is None else round(each.sqnr_db, 2)
        facts: dict[str, Any] = {
            "asked": scheme,
            "scheme": chosen.scheme,
            "attempts": [{key: value for key, value in each.items() if key != "worst"} for each in tried],
            "outputs": {
                output: {"cosine": round(value.cosine, 6), "sqnr_db": round(value.sqnr_db, 2)}
                for output, value in chosen.outputs.items()
            },
            "float_size_bytes": sum(
                file.stat().st_size for file in self.original.parent.glob(f"{self.original.name}*")
            ),
            "size_bytes": self.path.stat().st_size,
            "operators": quantized_ops(chosen.graph).as_facts(),
            "layers": layers,
        }
        if chosen.static is None or chosen.settings is None:
            return facts
        names = layer_names(self.floating)
        return facts | {
            "ranges": chosen.settings.ranges,
            "corrected_biases": len(chosen.static.corrected),
            "calibrated_tensors": self.calibration.collected,
            "float_layers": sorted(names[node] for node in chosen.settings.left_out),
            "sensitivity": [
                {
                    "name": names[each.layer.node],
                    "operator": each.layer.operator,
                    "sqnr_db": round(each.sqnr_db, 2),
                    "float": each.layer.node in chosen.settings.left_out,
                }
                for each in ranked
            ],
        }


def _rising(start: int, end: int) -> Iterator[int]:
    """start, then ever larger steps, and the end."""
    count = start
    while count < end:
        yield count
        count += max(1, count // 4)
    if start <= end:
        yield end


def spread(feeds: Feeds, count: int) -> list[Feed]:
    """At most ``count`` of the inputs, evenly spread over them."""
    step = max(1, len(feeds) // count)
    return [feed for index, feed in enumerate(feeds) if index % step == 0][:count]


def check(path: Path, component: Component, captured: Captured, threads: int) -> dict[str, Agreement]:
    """Agreement of every output with the float graph's on the held-out runs, on onnxruntime."""
    from vlm_edge.engines import load_engine
    from vlm_edge.numerics.quantization import agreement

    engine = load_engine("onnxruntime", path, component, threads, {"graph_optimization": "basic"})
    pairs = (
        (reference, engine.infer(feed)) for feed, reference in zip(captured.held_out, captured.references, strict=True)
    )
    return agreement(pairs)
