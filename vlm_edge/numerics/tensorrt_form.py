"""A symmetric Q/DQ graph as TensorRT's explicit quantization wants it; vlm_edge.numerics.tensorrt_rules checks it.

The pages named here are of NVIDIA's TensorRT documentation, "Working with Quantized Types".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vlm_edge.numerics.qdq_graph import SHAPE_OPERATORS, Graph, attribute, edited
from vlm_edge.numerics.qdq_retarget import (
    copied_node,
    fresh_name,
    is_integer,
    pair,
    quantizer_above,
)
from vlm_edge.numerics.quantization import dequantize

SCORE_OPERATORS = SHAPE_OPERATORS | {"Add", "Mul", "Div", "Where", "Cast", "Clip"}
"""What stands between attention's first product and its Softmax: the scale and the mask."""


def tensorrt_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with pairs directly before what runs in integers and nowhere else, and other weights in floating point.

    A weighted operator of which one factor alone is quantized gains nothing from its rounding ("Q/DQ Layer-Placement
    Recommendations": quantize all inputs of weighted operations), so its pair is taken out. So are the pairs of an
    attention of which one product alone could run in integers: it would not be fused ("Fused Attention"). Constants
    that no integer operator reads are floating point again: TensorRT knows weight-only quantization for 4 bits alone
    ("Quantization Granularities"), and would dequantize 8-bit weights in every run. The skip branch of a residual
    addition whose sum is quantized keeps its pair ("Quantize the residual input in skip-connections"), and axes count
    from the front.

    Args:
        model: activations signed with zero point 0, each QuantizeLinear followed by its DequantizeLinear.
    """
    result, before = model, list[str]()
    while (nodes := [f"{node.op_type} {node.input} {node.output}" for node in result.graph.node]) != before:
        before, result = nodes, _with_direct_pairs(result)  # a pair that is gone may have been another one's reason
    return _with_positive_axes(_with_float_constants(result))


def integer_nodes(graph: Graph) -> set[int]:
    """Positions of the heavy operators that run in integers: both factors quantized; attention, both products.

    Quantizers that TensorRT has no form for (a weight with zero points, or scales along another axis than its output
    channels) don't count.
    """
    found = {position for position, node in enumerate(graph.nodes) if is_integer(graph, node)}
    found = {position for position in found if _fits(graph, graph.nodes[position])}
    for scores, context in attention_products(graph):
        products = {graph.position(scores), graph.position(context)}
        if not products <= found:
            found -= products
    return found


def _fits(graph: Graph, node: onnx.NodeProto) -> bool:
    for index, name in enumerate(node.input[:2]):
        quantizer = quantizer_above(graph, name)
        if quantizer is None or quantizer.zero_point.dtype != np.int8 or quantizer.zero_point.any():
            return False
        if quantizer.scale.size > 1:
            restored = graph.producers[name]
            levels = graph.constant(restored.input[0])
            assert levels is not None
            if attribute(restored, "axis", 1) % levels.ndim != weight_axis(node, index, levels.ndim):
                return False
    return True


def weight_axis(node: onnx.NodeProto, index: int, rank: int) -> int:
    """The output channels' axis of a weighted operator's factor ``index``: K of KCRS, of Gemm and of MatMul."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        transposed = attribute(node, ("transA", "transB")[index], 0)
        return int(index != bool(transposed))
    return rank - 1 if index else rank - 2


def attention_products(graph: Graph) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """(queries times keys, weights times values) of every attention that is spelled out: around each Softmax."""
    for node in graph.nodes:
        if node.op_type != "Softmax":
            continue
        scores = _scores_above(graph, node.input[0])
        for context in _products_below(graph, node.output[0]):
            if scores is not None:
                yield scores, context


def _scores_above(graph: Graph, name: str) -> onnx.NodeProto | None:
    """The product of two computed tensors that ``name`` is made of, below scale and mask."""
    node = graph.producers.get(name)
    if node is None or node.op_type not in SCORE_OPERATORS | {"MatMul"}:
        return None
    if node.op_type == "MatMul":
        return node if all(is_computed(graph, factor) for factor in node.input) else None
    found = (_scores_above(graph, factor) for factor in node.input)
    return next((product for product in found if product is not None), None)


def _products_below(graph: Graph, name: str) -> Iterator[onnx.NodeProto]:
    for reader in graph.consumers[name]:
        if reader.op_type == "MatMul":
            yield reader
        elif reader.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast") or reader.op_type in SHAPE_OPERATORS:
            yield from _products_below(graph, reader.output[0])


def is_computed(graph: Graph, name: str) -> bool:
    node = graph.producers.get(name)
    source = node.input[0] if node is not None and node.op_type == "DequantizeLinear" else name
    return graph.constant(source) is None


def skip_branch(graph: Graph, node: onnx.NodeProto, integer: set[int]) -> int | None:
    """Which input of a residual addition is the skip branch; None where ``node`` is none, or its sum isn't quantized.

    The other input comes from an integer operator (and the addition of its bias), and whoever reads the sum quantizes
    it.
    """
    if node.op_type != "Add" or not is_quantized(graph, node.output[0]):
        return None
    if not all(is_computed(graph, name) for name in node.input):
        return None
    weighted = [from_integer(graph, name, integer) for name in node.input]
    return None if not any(weighted) else 1 if all(weighted) else weighted.index(False)


def is_quantized(graph: Graph, name: str) -> bool:
    """Whether all who read ``name`` quantize it, directly or below operators that only move elements."""
    readers = graph.consumers[name]
    if name in graph.outputs or not readers:
        return False
    return all(
        reader.op_type == "QuantizeLinear"
        or (reader.op_type in SHAPE_OPERATORS and all(is_quantized(graph, output) for output in reader.output))
        for reader in readers
    )


def from_integer(graph: Graph, name: str, integer: set[int]) -> bool:
    """Whether ``name`` is what a node of ``integer`` gives, directly or behind its bias or a pair."""
    node = graph.producers.get(name)
    while node is not None and node.op_type in ("Add", "QuantizeLinear", "DequantizeLinear"):
        computed = [factor for factor in node.input[:2] if is_computed(graph, factor)]
        if node.op_type == "Add" and len(computed) != 1:
            return False
        node = graph.producers.get(computed[0] if node.op_type == "Add" else node.input[0])
    return node is not None and graph.position(node) in integer


def _with_direct_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Integer operators and skip branches behind a pair of their own; all others read what was not rounded."""
    graph = Graph(model)
    integer = integer_nodes(graph)
    wanted = {(position, index) for position in integer for index in (0, 1)}
    skips = ((position, skip_branch(graph, node, integer)) for position, node in enumerate(graph.nodes))
    wanted |= {(position, index) for position, index in skips if index is not None}
    origins = _origins(graph)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    placed: dict[str, str] = {}
    for position, node in enumerate(graph.nodes):
        moved, before = copied_node(node), list[onnx.NodeProto]()
        for index, name in enumerate(node.input):
            quantizer = quantizer_above(graph, name) if (position, index) in wanted else None
            if quantizer is None:
                moved.input[index] = origins.get(name, name)
            elif quantizer.at != name:
                if name not in placed:
                    placed[name] = fresh_name(graph, f"{name}_dequantized", placed.values())
                    names = [fresh_name(graph, f"{name}_{part}", constants) for part in ("scale", "zero_point")]
                    constants |= dict(zip(names, (quantizer.scale, quantizer.zero_point), strict=True))
                    before += pair(name, names, placed[name])
                moved.input[index] = placed[name]
        replacements[position] = [*before, moved]
        if node.op_type == "DequantizeLinear" and node.output[0] in graph.outputs and node.output[0] in origins:
            replacements[position] = [onnx.helper.make_node("Identity", [origins[node.output[0]]], node.output)]
    return edited(model, replacements, constants)


def _origins(graph: Graph) -> dict[str, str]:
    """What went into each per-tensor activation pair, by what comes out of it."""
    origins: dict[str, str] = {}
    for node in graph.nodes:
        source = graph.producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is None or source.op_type != "QuantizeLinear" or graph.constant(source.input[0]) is not None:
            continue
        if quantizer_above(graph, node.output[0]):
            origins[node.output[0]] = origins.get(source.input[0], source.input[0])
    return origins


def _with_float_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Dequantized constants in floating point wherever they are no factor of an integer operator."""
    graph = Graph(model)
    integer = integer_nodes(graph)
    constants: dict[str, NDArray[Any]] = {}
    names: dict[str, str] = {}
    replacements: dict[int, list[onnx.NodeProto]] = {}
    for position, node in enumerate(graph.nodes):
        for index, name in enumerate(node.input):
            value = dequantized_constant(graph, name)
            if value is None or (position in integer and index < 2):
                continue
            if name not in names:
                names[name] = fresh_name(graph, f"{name}_float", constants)
                constants[names[name]] = value
            moved = replacements.setdefault(position, [copied_node(node)])[0]
            moved.input[index] = names[name]
    return edited(model, replacements, constants)


def dequantized_constant(graph: Graph, name: str) -> NDArray[Any] | None:
    """The value of a DequantizeLinear of constants (no blocks), or None."""
    node = graph.producers.get(name)
    if node is None or node.op_type != "DequantizeLinear" or attribute(node, "block_size", 0):
        return None
    parameters = [graph.constant(tensor) for tensor in node.input]
    if any(value is None for value in parameters):
        return None
    levels, scale = parameters[0], parameters[1]
    assert levels is not None
    assert scale is not None
    shape = [1] * levels.ndim
    if scale.size > 1:
        shape[attribute(node, "axis", 1)] = scale.size
    zero_point = parameters[2] if len(parameters) > 2 else np.zeros(scale.shape, np.int8)
    assert zero_point is not None
    value: NDArray[Any] = dequantize(levels, scale.reshape(shape), zero_point.reshape(shape)).astype(scale.dtype)
    return value


def _with_positive_axes(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    for position, node in enumerate(graph.nodes):
        levels = graph.constant(node.input[0]) if node.op_type == "DequantizeLinear" else None
        axis = attribute(node, "axis", 1)
        if levels is None or axis >= 0:
            continue
        moved = copied_node(node)
        for item in moved.attribute:
            if item.name == "axis":
                item.i = axis + levels.ndim
        replacements[position] = [moved]
    return edited(model, replacements, {})
