"""Activations of a Q/DQ graph from signed to unsigned 8-bit integers or back, and Q/DQ pairs to where they count."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
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
    """Every 8-bit activation quantizer in its signed or unsigned form; dequantized values stay exactly the same.

    ``scale * (q - z)`` doesn't change when q and z are both shifted by 128, and [-128, 127] becomes [0, 255], so
    nothing is calibrated again: scales are the very same tensors. Weights (a quantized constant, or a constant with a
    pair of its own) and quantizers of other widths stay as they are.

    Raises:
        ValueError: a quantized tensor is an output of the graph, or is read by something else than DequantizeLinear,
            Concat and shape operators, or a scale or zero point is computed.
    """
    wanted = np.dtype(np.int8 if signed else np.uint8)
    shift = np.int16(-SHIFT if signed else SHIFT)

    def shifted(scale: NDArray[Any], zero_point: NDArray[Any]) -> Parameters:
        if zero_point.dtype == wanted or zero_point.dtype not in _EIGHT_BIT:
            return scale, zero_point
        return scale, (zero_point.astype(np.int16) + shift).astype(wanted)

    return _with_activation_parameters(model, shifted)


def symmetric_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every activation quantizer signed with zero point 0, the only kind that TensorRT knows.

    The range grows to its larger side: what was unsigned, and only positive, loses one bit. A quantizer whose zero
    point is in the middle of its range (s8: 0; u8: 128) keeps its scale bit for bit.

    Raises:
        ValueError: as :func:`retarget_activations`, or a quantizer is not of 8 bits.
    """

    def symmetric(scale: NDArray[Any], zero_point: NDArray[Any]) -> Parameters:
        if zero_point.dtype not in _EIGHT_BIT:
            raise ValueError(f"a quantizer of {zero_point.dtype} has no symmetric 8-bit form")
        middle = SHIFT if zero_point.dtype == np.uint8 else 0
        new = np.zeros_like(zero_point, np.int8)
        if np.all(zero_point == middle):
            return scale, zero_point if zero_point.dtype == np.int8 else new
        limits = np.iinfo(zero_point.dtype)
        reach = np.maximum(limits.max - zero_point.astype(np.int16), zero_point.astype(np.int16) - limits.min)
        return (scale * reach / np.iinfo(np.int8).max).astype(scale.dtype), new

    return _with_activation_parameters(model, symmetric)


Parameters = tuple[NDArray[Any], NDArray[Any]]
"""Scale and zero point."""

_EIGHT_BIT = (np.dtype(np.int8), np.dtype(np.uint8))


def _with_activation_parameters(
    model: onnx.ModelProto, change: Callable[[NDArray[Any], NDArray[Any]], Parameters]
) -> onnx.ModelProto:
    """A copy in which every activation pair has the scale and the zero point that ``change`` makes of the old ones.

    QuantizeLinear and DequantizeLinear keep a scale of their own where they have one. What doesn't change is the very
    same tensor afterwards, under its old name.
    """
    result = copied(model)
    graph = Graph(result)
    constants: dict[str, NDArray[Any]] = {}
    done: dict[int, NDArray[Any]] = {}
    for node in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        if graph.constant(node.input[0]) is not None:
            continue
        scale, zero_point = _parameters(graph, node)
        if change(scale, zero_point)[1] is zero_point:
            continue
        for user in (node, *_dequantizers(graph, node.output[0])):
            if id(user) not in done:
                done[id(user)] = _change_parameters(graph, user, zero_point.dtype, change, constants)
            if not np.array_equal(np.broadcast_to(done[id(user)], zero_point.shape), zero_point):
                raise ValueError(f"{user.op_type} {user.name}: another zero point than that of {node.name}")
        for item in [item for item in node.attribute if item.name == "output_dtype"]:
            node.attribute.remove(item)
    result.graph.ClearField("value_info")  # it holds the old types
    return edited(result, {}, constants)


def _change_parameters(
    graph: Graph,
    node: onnx.NodeProto,
    dtype: np.dtype[Any],
    change: Callable[[NDArray[Any], NDArray[Any]], Parameters],
    constants: dict[str, NDArray[Any]],
) -> NDArray[Any]:
    """Give one node of a pair its new parameters, in place; returns its old zero point."""
    scale, zero_point = _parameters(graph, node, dtype)
    new_scale, new_zero_point = change(scale, zero_point)
    names = [node.input[1], fresh_name(graph, f"{node.output[0]}_zero_point", constants)]
    constants[names[1]] = new_zero_point
    if new_scale is not scale:
        names[0] = fresh_name(graph, f"{node.output[0]}_scale", constants)
        constants[names[0]] = new_scale
    node.input[:] = [node.input[0], *names]
    return zero_point


def sink_quantizers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Activation Q/DQ pairs only where a heavy operator reads them directly, and nowhere else.

    A pair that a calibration tool placed above Reshape, Transpose and the like is repeated below them with the same
    parameters: the heavy operator still reads the same values, since elementwise rounding commutes with moving
    elements. Pairs that then stand around operators that run in floating point are taken out, and cost neither time
    nor accuracy; a heavy operator with one quantized factor alone is such an operator. Per-channel activation pairs
    stay where they are.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    placed: dict[str, str] = {}
    for position, node in enumerate(graph.nodes):
        if not is_integer(graph, node):
            continue
        found = [quantizer_above(graph, name) for name in node.input[:2]]
        moved = copied_node(node)
        before: list[onnx.NodeProto] = []
        for index, (name, quantizer) in enumerate(zip(node.input[:2], found, strict=True)):
            if quantizer is None or quantizer.at == name:
                continue
            if name not in placed:
                placed[name] = fresh_name(graph, f"{name}_dequantized")
                names = [fresh_name(graph, f"{name}_{part}", constants) for part in ("scale", "zero_point")]
                constants |= dict(zip(names, (quantizer.scale, quantizer.zero_point), strict=True))
                before += pair(name, names, placed[name])
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
        scale = graph.constant(node.input[1])
        if scale is None or (scale.size > 1 and graph.constant(node.input[0]) is None):
            return None
        if len(node.input) > 2 and node.input[2] and graph.constant(node.input[2]) is None:
            return None
        return Quantizer(name, scale, _zero_point(graph, node))
    if node.op_type in SHAPE_OPERATORS:
        return _per_tensor(quantizer_above(graph, node.input[0]))
    if node.op_type == "Concat":
        found = [_per_tensor(quantizer_above(graph, part)) for part in node.input]
        first = found[0]
        return first if first and all(other and first.same_levels(other) for other in found) else None
    return None


def is_integer(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether both factors of a heavy operator are quantized, so that it can run in integers."""
    return node.op_type in HEAVY_OPERATORS and all(quantizer_above(graph, name) for name in node.input[:2])


def _per_tensor(quantizer: Quantizer | None) -> Quantizer | None:
    return quantizer if quantizer and quantizer.scale.size == 1 else None


def _without_float_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let whatever computes in floating point read what went into a per-tensor activation pair, not what came out."""
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
        heavy = 2 if is_integer(graph, node) else 0
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


def pair(name: str, parameters: Sequence[str], dequantized: str) -> list[onnx.NodeProto]:
    """QuantizeLinear of ``name`` and DequantizeLinear to ``dequantized``, with one scale and zero point for both."""
    quantized = f"{dequantized}_levels"
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [quantized], name=f"{dequantized}_quantize"),
        helper.make_node("DequantizeLinear", [quantized, *parameters], [dequantized], name=f"{dequantized}_restore"),
    ]


def fresh_name(graph: Graph, wanted: str, taken: Container[str] = ()) -> str:
    """``wanted``, or that with a number, so that no tensor of the graph and nothing in ``taken`` has it."""
    name, number = wanted, 1
    while name in graph.producers or name in graph.initializers or name in graph.consumers or name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def _parameters(graph: Graph, node: onnx.NodeProto, dtype: np.dtype[Any] | None = None) -> Parameters:
    """A node's constant scale and zero point; ``dtype`` is the zero point's where the node names none.

    Raises:
        ValueError: one of them is computed.
    """
    scale = graph.constant(node.input[1])
    if scale is None:
        raise ValueError(f"{node.op_type} {node.name}: its scale is computed, not constant")
    named = len(node.input) > 2 and node.input[2]
    zero_point = np.zeros(scale.shape, dtype) if dtype is not None and not named else _zero_point(graph, node)
    return scale, zero_point


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
    if quantized in graph.outputs:
        raise ValueError(f"the quantized tensor {quantized} is an output of the graph")
    for reader in graph.consumers[quantized]:
        if reader.op_type == "DequantizeLinear":
            yield reader
        elif reader.op_type in SHAPE_OPERATORS or reader.op_type == "Concat":
            for output in reader.output:
                yield from _dequantizers(graph, output)
        else:
            raise ValueError(f"{reader.op_type} {reader.name} reads the quantized tensor {quantized}")
