"""Activations of a Q/DQ graph from signed to unsigned 8-bit integers or back, and Q/DQ pairs to where they count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vlm_edge.numerics.qdq_graph import SHAPE_OPERATORS, Graph, attribute, copied, edited

HEAVY_OPERATORS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
"""Operators whose first two inputs are multiplied, so that integers make them faster."""

SHIFT = 128
"""Between the signed and the unsigned form of one 8-bit quantizer."""


def retarget_activations(model: onnx.ModelProto, *, signed: bool) -> onnx.ModelProto:
    """Every activation quantizer in its signed or unsigned form; dequantized values stay exactly the same.

    ``scale * (q - z)`` doesn't change when q and z are both shifted by 128, and [-128, 127] becomes [0, 255], so
    nothing is calibrated again. Weights (DequantizeLinear of a constant) stay as they are.

    Raises:
        ValueError: a quantized tensor is read by something else than DequantizeLinear and shape operators.
    """
    wanted = np.dtype(np.int8 if signed else np.uint8)
    shift = np.int16(-SHIFT if signed else SHIFT)

    def shifted(scale: NDArray[Any], zero_point: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if zero_point.dtype == wanted:
            return scale, zero_point
        return scale, (zero_point + shift).astype(wanted)

    return _with_activation_parameters(model, shifted)


def symmetric_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every activation quantizer signed with zero point 0, the only kind that TensorRT knows.

    The range grows to its larger side: what was unsigned, and only positive, loses one bit.

    Raises:
        ValueError: as :func:`retarget_activations`.
    """

    def symmetric(scale: NDArray[Any], zero_point: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if zero_point.dtype == np.int8 and not zero_point.any():
            return scale, zero_point
        limits = np.iinfo(zero_point.dtype)
        reach = np.maximum(limits.max - zero_point.astype(np.int16), zero_point.astype(np.int16) - limits.min)
        return (scale * reach / np.iinfo(np.int8).max).astype(scale.dtype), np.zeros_like(zero_point, np.int8)

    return _with_activation_parameters(model, symmetric)


Parameters = tuple[NDArray[Any], NDArray[Any]]
"""Scale and zero point."""


def _with_activation_parameters(
    model: onnx.ModelProto, change: Callable[[NDArray[Any], NDArray[Any]], Parameters]
) -> onnx.ModelProto:
    """A copy in which every activation pair has the scale and the zero point that ``change`` makes of the old ones."""
    result = copied(model)
    graph = Graph(result)
    constants: dict[str, NDArray[Any]] = {}
    for node in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        scale, zero_point = graph.constant(node.input[1]), _zero_point(graph, node)
        if scale is None:
            raise ValueError(f"QuantizeLinear {node.name}: its scale is computed, not constant")
        new = change(scale, zero_point)
        if new[0] is scale and new[1] is zero_point:
            continue
        names = f"{node.output[0]}_new_scale", f"{node.output[0]}_new_zero_point"
        constants.update(zip(names, new, strict=True))
        for user in (node, *_dequantizers(graph, node.output[0])):
            user.input[:] = [user.input[0], *names]
        for item in [item for item in node.attribute if item.name == "output_dtype"]:
            node.attribute.remove(item)
    result.graph.ClearField("value_info")  # it holds the old types
    return edited(result, {}, constants)


def sink_quantizers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Activation Q/DQ pairs only where a heavy operator reads them directly, and nowhere else.

    A pair that a calibration tool placed above Reshape, Transpose and the like is repeated below them with the same
    parameters: the heavy operator still reads the same values, since elementwise rounding commutes with moving
    elements. Pairs that then stand around operators that run in floating point are taken out, and cost neither time
    nor accuracy. Per-channel activation pairs stay where they are.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    placed: dict[str, str] = {}
    for position, node in enumerate(graph.nodes):
        if node.op_type not in HEAVY_OPERATORS:
            continue
        found = [quantizer_above(graph, name) for name in node.input[:2]]
        if None in found:
            continue
        moved = copied_node(node)
        before: list[onnx.NodeProto] = []
        for index, (name, quantizer) in enumerate(zip(node.input[:2], found, strict=True)):
            if quantizer is None or quantizer.at == name:
                continue
            if name not in placed:
                placed[name] = f"{name}_dequantized"
                constants |= {f"{name}_scale": quantizer.scale, f"{name}_zero_point": quantizer.zero_point}
                before += _pair(name, placed[name])
            moved.input[index] = placed[name]
        replacements[position] = [*before, moved]
    return _without_float_pairs(edited(model, replacements, constants))


@dataclass(frozen=True)
class Quantizer:
    """A per-tensor quantizer; ``at`` is the output of its DequantizeLinear."""

    at: str
    scale: NDArray[Any]
    zero_point: NDArray[Any]

    def same_levels(self, other: Quantizer) -> bool:
        return bool(np.array_equal(self.scale, other.scale) and np.array_equal(self.zero_point, other.zero_point))


def quantizer_above(graph: Graph, name: str) -> Quantizer | None:
    """The quantizer whose levels ``name``'s values have, found above operators that only move elements."""
    node = graph.producers.get(name)
    if node is None:
        return None
    if node.op_type == "DequantizeLinear":
        scale, zero_point = graph.constant(node.input[1]), _zero_point(graph, node)
        if scale is None or (scale.size > 1 and graph.constant(node.input[0]) is None):
            return None
        return Quantizer(name, scale, zero_point)
    if node.op_type in SHAPE_OPERATORS:
        return _per_tensor(quantizer_above(graph, node.input[0]))
    if node.op_type == "Concat":
        found = [_per_tensor(quantizer_above(graph, part)) for part in node.input]
        first = found[0]
        return first if first and all(other and first.same_levels(other) for other in found) else None
    return None


def _per_tensor(quantizer: Quantizer | None) -> Quantizer | None:
    return quantizer if quantizer and quantizer.scale.size == 1 else None


def _without_float_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let whatever is no heavy operator read what went into a per-tensor activation pair, not what came out."""
    graph = Graph(model)
    origins: dict[str, str] = {}
    replacements: dict[int, list[onnx.NodeProto]] = {}
    for position, node in enumerate(graph.nodes):
        source = graph.producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is not None and source.op_type == "QuantizeLinear" and quantizer_above(graph, node.output[0]):
            origins[node.output[0]] = origins.get(source.input[0], source.input[0])
            if node.output[0] in graph.outputs:
                replacements[position] = [helper.make_node("Identity", [source.input[0]], node.output, name=node.name)]
    for position, node in enumerate(graph.nodes):
        heavy = 2 if node.op_type in HEAVY_OPERATORS else 0
        inputs = [name if index < heavy else origins.get(name, name) for index, name in enumerate(node.input)]
        if inputs != list(node.input):
            replacements[position] = [copied_node(node)]
            replacements[position][0].input[:] = inputs
    return edited(model, replacements, {})


def copied_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy that can be changed."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _pair(name: str, dequantized: str) -> list[onnx.NodeProto]:
    parameters = [f"{name}_scale", f"{name}_zero_point"]
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_quantized"], name=f"{name}_quantize"),
        helper.make_node("DequantizeLinear", [f"{name}_quantized", *parameters], [dequantized], name=f"{name}_restore"),
    ]


def _zero_point(graph: Graph, node: onnx.NodeProto) -> NDArray[Any]:
    """The zero point of a QuantizeLinear or DequantizeLinear; zero where it names none."""
    if len(node.input) > 2 and node.input[2]:
        value = graph.constant(node.input[2])
        if value is None:
            raise ValueError(f"{node.op_type} {node.name}: its zero point is computed, not constant")
        return value
    scale = graph.constant(node.input[1])
    source = graph.constant(node.input[0])
    if source is not None:
        dtype = source.dtype
    else:
        dtype = np.dtype(np.int8 if attribute(node, "output_dtype", 0) == onnx.TensorProto.INT8 else np.uint8)
    return np.zeros(() if scale is None else scale.shape, dtype)


def _dequantizers(graph: Graph, quantized: str) -> Iterator[onnx.NodeProto]:
    """Every DequantizeLinear that reads ``quantized``, directly or below operators that only move elements."""
    for reader in graph.consumers[quantized]:
        if reader.op_type == "DequantizeLinear":
            yield reader
        elif reader.op_type in SHAPE_OPERATORS:
            for output in reader.output:
                yield from _dequantizers(graph, output)
        else:
            raise ValueError(f"{reader.op_type} {reader.name} reads the quantized tensor {quantized}")
