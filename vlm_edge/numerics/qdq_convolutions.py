"""Convolutions of a graph in INT8 for onnxruntime: Q/DQ pairs around them, and QLinearConv in their place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vlm_edge.numerics.qdq_graph import Graph, attribute, edited
from vlm_edge.numerics.qdq_place import tensor_pair, weight_restore
from vlm_edge.numerics.quant_weights import cast_weight

FEWEST_PRODUCTS = 64
"""Convolutions whose outputs add up fewer products stay float: the first one on an image's three channels adds 27, and
depthwise ones 9. Quantizing their data takes longer than their products."""
LARGEST_BIAS = 2**30
"""In steps of data scale times weight scale: half of what int32 holds is left for the products."""


def find_convolutions(graph: Graph) -> list[onnx.NodeProto]:
    """Dense 2-D convolutions with float32 constants as weight and bias that are worth integer arithmetic."""
    found = []
    for node in graph.nodes:
        weight = graph.constant(node.input[1]) if node.op_type == "Conv" and _bias(graph, node) is not None else None
        if weight is None or weight.dtype != np.float32 or weight.ndim != 4 or attribute(node, "group", 1) != 1:
            continue
        if math.prod(weight.shape[1:]) >= FEWEST_PRODUCTS and node.output[0] not in graph.outputs:
            found.append(node)
    return found


def place_convolutions(
    model: onnx.ModelProto, *, weight_bits: int, outputs: bool, left_out: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """A pair before every convolution of :func:`find_convolutions`, and its weight as int8 by channel.

    With ``outputs`` there is a pair after it too: onnxruntime's QLinearConv has no float result. One that reads or
    writes what is quantized already is left alone. Ranges are set by
    :func:`vlm_edge.numerics.qdq_place.with_ranges`.

    Args:
        model: float32, every node named; linear layers may have their pairs already.
        weight_bits: as in :func:`vlm_edge.numerics.quantization.quantize_weight`.
        left_out: names of nodes that stay float.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    others = {node.input[0] for node in graph.nodes if node.op_type == "QuantizeLinear"}
    convolutions = [
        node
        for node in find_convolutions(graph)
        if node.name not in left_out and not others.intersection((node.input[0], node.output[0]))
    ]
    written = {node.output[0] for node in convolutions} if outputs else set()
    placed: set[str] = set()
    for node in convolutions:
        weight = graph.constant(node.input[1])
        assert weight is not None
        before = []
        if node.input[0] not in placed | written:
            before += tensor_pair(node.input[0], constants)
        if node.input[1] not in placed:
            before.append(weight_restore(node.input[1], weight, 0, weight_bits, constants))
        placed.update(node.input[:2])
        after = tensor_pair(node.output[0], constants) if outputs else []
        convolution = onnx.NodeProto()
        convolution.CopyFrom(node)
        convolution.input[:2] = [f"{node.input[0]}_dequantized", f"{node.input[1]}_dequantized"]
        replacements[graph.position(node)] = [*before, convolution, *after]
    for position, node in enumerate(graph.nodes):
        if position not in replacements and written.intersection(node.input):
            reader = onnx.NodeProto()
            reader.CopyFrom(node)
            reader.input[:] = [f"{name}_dequantized" if name in written else name for name in node.input]
            replacements[position] = [reader]
    return edited(model, replacements, constants)


def lower_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convolutions between Q/DQ pairs as QLinearConv, whose bias is int32 in steps of data scale times weight scale.

    A convolution with an int8 weight whose data or output has no pair computes in float from that weight.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    for node in graph.nodes:
        restore = graph.producers.get(node.input[1]) if node.op_type == "Conv" else None
        bias = _bias(graph, node) if restore is not None and restore.op_type == "DequantizeLinear" else None
        if restore is None or bias is None or graph.constant(restore.input[0]) is None:
            continue
        data = graph.producers.get(node.input[0])
        quantize = graph.only_consumer(node.output[0], "QuantizeLinear")
        if data is None or data.op_type != "DequantizeLinear" or quantize is None:
            _as_float(graph, node, restore, replacements, constants)
            continue
        levels, scales = graph.constant(restore.input[0]), graph.constant(restore.input[1])
        data_scale = graph.constant(data.input[1])
        assert levels is not None
        assert scales is not None
        assert data_scale is not None
        scales = np.broadcast_to(scales.reshape(-1), levels.shape[:1]).astype(np.float32)
        levels, wider, steps = _with_bias_steps(levels, scales, float(data_scale.item()), bias)
        stem = node.input[1] if np.array_equal(wider, scales) else node.name
        names = [f"{stem}_levels", f"{stem}_channel_scales", f"{stem}_zeros", f"{node.name}_bias_levels"]
        constants |= dict(zip(names, (levels, wider, np.zeros(scales.shape, np.int8), steps), strict=True))
        inputs = [*data.input[:3], *names[:3], *quantize.input[1:3], names[3]]
        kernel = helper.make_node("QLinearConv", inputs, [quantize.output[0]], name=node.name)
        kernel.attribute.extend(node.attribute)
        replacements[graph.position(node)] = []
        replacements[graph.position(quantize)] = [kernel]
    return edited(model, replacements, constants)


def _with_bias_steps(
    levels: NDArray[np.int8], scales: NDArray[np.float32], data_scale: float, bias: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """A weight's levels (channels, ...) and scales (channels,), and the bias as int32 in steps of their products.

    Where a channel's weights are next to nothing beside its bias (a normalization folded in that has switched the
    channel off), the bias doesn't fit: that channel gets a larger scale, with which it does.
    """
    bias = np.broadcast_to(bias.reshape(-1), scales.shape).astype(np.float64)
    wider = np.maximum(scales, np.abs(bias) / (data_scale * LARGEST_BIAS)).astype(np.float32)
    shares = (scales / wider).reshape(-1, *[1] * (levels.ndim - 1))
    steps = np.rint(bias / (data_scale * wider.astype(np.float64)))
    return np.rint(levels * shares).astype(np.int8), wider, steps.astype(np.int32)


def _bias(graph: Graph, node: onnx.NodeProto) -> NDArray[Any] | None:
    """The bias, 0 where there is none, and None where it is computed."""
    return graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1, np.float32)


def _as_float(
    graph: Graph,
    node: onnx.NodeProto,
    restore: onnx.NodeProto,
    replacements: dict[int, list[onnx.NodeProto]],
    constants: dict[str, NDArray[Any]],
) -> None:
    """The weight's DequantizeLinear as nodes that onnxruntime folds when it loads the graph."""
    levels, scales = graph.constant(restore.input[0]), graph.constant(restore.input[1])
    assert levels is not None
    assert scales is not None
    constants[f"{node.input[1]}_levels"] = levels
    replacements[graph.position(restore)] = cast_weight(node.input[1], scales, 0, levels.ndim, constants)
