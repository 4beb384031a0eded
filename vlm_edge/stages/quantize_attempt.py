"""One way of quantizing a component: a scheme in a target's form, and how its result agrees with the float graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from vlm_edge.numerics.calibration import Feeds
    from vlm_edge.numerics.quant_forms import QuantForm
    from vlm_edge.numerics.quant_static import StaticGraph, StaticSettings
    from vlm_edge.numerics.quantization import Agreement
    from vlm_edge.processing.manifest import Component
    from vlm_edge.stages.quantize_capture import Captured

BLOCK_OF_4_BITS, BLOCK_OF_8_BITS, BLOCK_OF_TENSORRT = 32, 128, 64
"""Most input channels that share a scale. 4 bits: 64 are 1.1 times as fast, but 0.9 dB noisier, and 128 are half as
fast on OpenVINO. 8 bits have accuracy to spare, and 128 are 1.2 times as fast as 32. TensorRT takes 64 and 128 for
4 bits ("Quantization Schemes")."""


@dataclass(frozen=True)
class Attempt:
    """A quantized graph, which nodes are float in it, and how its outputs agree with the float graph's."""

    scheme: str
    graph: onnx.ModelProto
    left_out: frozenset[str]
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
            facts |= {"ranges": self.settings.ranges, "float_layers": len(self.left_out)}
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
    """A prepared graph (``int8`` and ``int8-smooth``: with its Q/DQ pairs) in a target's form.

    Args:
        left_out: names of nodes that stay float.
    """
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
        graph = dynamic_linears(graph, weight_bits=form.weight_bits, left_out=left_out)
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


def check(path: Path, component: Component, captured: Captured, threads: int) -> dict[str, Agreement]:
    """Agreement of every output with the float graph's on the held-out runs, on onnxruntime."""
    from vlm_edge.engines import load_engine
    from vlm_edge.numerics.quantization import agreement

    engine = load_engine("onnxruntime", path, component, threads, {"graph_optimization": "basic"})
    pairs = (
        (reference, engine.infer(feed)) for feed, reference in zip(captured.held_out, captured.references, strict=True)
    )
    return agreement(pairs)
