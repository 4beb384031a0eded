"""Q/DQ pairs with given ranges: around linear layers, or where a calibration tool has placed them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vlm_edge.numerics.qdq_graph import Graph, copied, edited
from vlm_edge.numerics.qdq_lower import find_linears
from vlm_edge.numerics.quantization import quantize_weight
from vlm_edge.numerics.ranges import Range


def place_linears(
    model: onnx.ModelProto, *, weight_bits: int, left_out: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """A pair before every linear layer's data, and its weight as int8 with a scale for each output channel.

    Ranges are set by :func:`with_ranges`.

    Args:
        model: float32, every node named.
        weight_bits: as in :func:`vlm_edge.numerics.quantization.quantize_weight`.
        left_out: names of nodes that stay float.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    placed: set[str] = set()
    for linear in find_linears(graph):
        weight = graph.constant(linear.weight)
        if weight is None or weight.dtype != np.float32 or linear.node.name in left_out:
            continue
        before: list[onnx.NodeProto] = []
        if linear.data not in placed:
            before += tensor_pair(linear.data, constants)
        if linear.weight not in placed:
            axis = 0 if linear.transposed else 1
            before.append(weight_restore(linear.weight, weight, axis, weight_bits, constants))
        placed.update((linear.data, linear.weight))
        node = onnx.NodeProto()
        node.CopyFrom(linear.node)
        node.input[:2] = [f"{linear.data}_dequantized", f"{linear.weight}_dequantized"]
        replacements[graph.position(linear.node)] = [*before, node]
    return copied(edited(model, replacements, constants))  # a message keeps the memory of what was taken out of it


def tensor_pair(name: str, constants: dict[str, NDArray[Any]]) -> list[onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear from ``name`` to ``{name}_dequantized``; their parameters are to be set."""
    parameters = [f"{name}_scale", f"{name}_zero_point"]
    constants |= {parameters[0]: np.ones((), np.float32), parameters[1]: np.zeros((), np.int8)}
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_quantized"], name=f"{name}_quantize"),
        helper.make_node(
            "DequantizeLinear", [f"{name}_quantized", *parameters], [f"{name}_dequantized"], name=f"{name}_restore"
        ),
    ]


def weight_restore(
    name: str, weight: NDArray[Any], axis: int, bits: int, constants: dict[str, NDArray[Any]]
) -> onnx.NodeProto:
    """DequantizeLinear to ``{name}_dequantized`` from int8 levels with a scale for each channel along ``axis``."""
    levels, scales = quantize_weight(weight, axis, bits=bits)
    constants |= {
        f"{name}_int8": levels,
        f"{name}_scale": scales,
        f"{name}_zero_point": np.zeros(scales.shape, np.int8),
    }
    inputs = [f"{name}_int8", f"{name}_scale", f"{name}_zero_point"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], name=f"{name}_restore", axis=axis)


def quantized_tensors(model: onnx.ModelProto) -> list[list[str]]:
    """The float tensors that are quantized by tensor, those that share one quantizer's range together.

    A calibration tool gives quantizers that must agree (the parts of a Concat, say) the same scale and zero point; so
    those that have the same are taken to belong together.
    """
    graph = Graph(model)
    groups: dict[Any, list[str]] = {}
    for node in graph.nodes:
        scale = graph.constant(node.input[1]) if node.op_type == "QuantizeLinear" else None
        if scale is None or scale.size != 1 or graph.constant(node.input[0]) is not None:
            continue
        zero = graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros(1, np.uint8)
        key = (float(scale.item()), int(zero.item())) if zero is not None else node.name
        own = groups.setdefault(key if _calibrated(graph, node) else node.input[0], [])
        if node.input[0] not in own:
            own.append(node.input[0])
    return list(groups.values())


def _calibrated(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a tool chose the scale: pairs of :func:`place_linears` have none yet, which is written as 1."""
    scale = graph.constant(node.input[1])
    return scale is not None and float(scale.item()) != 1.0


def with_ranges(model: onnx.ModelProto, ranges: Mapping[str, Range], *, symmetric: bool) -> onnx.ModelProto:
    """Every quantizer of a tensor in ``ranges`` in its signed form with that range.

    Args:
        symmetric: zero point 0 and 127 for the larger side, else 256 levels over the range.
    """
    result = copied(model)
    graph = Graph(result)
    constants: dict[str, NDArray[Any]] = {}
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or node.input[0] not in ranges:
            continue
        scale, zero_point = parameters_of(ranges[node.input[0]], symmetric=symmetric)
        names = f"{node.output[0]}_range_scale", f"{node.output[0]}_range_zero_point"
        constants |= {names[0]: np.array(scale, np.float32), names[1]: np.array(zero_point, np.int8)}
        for user in (
            node,
            *(other for other in graph.consumers[node.output[0]] if other.op_type == "DequantizeLinear"),
        ):
            user.input[:] = [user.input[0], *names]
        for item in [item for item in node.attribute if item.name == "output_dtype"]:
            node.attribute.remove(item)
    result.graph.ClearField("value_info")  # it holds the old types
    return edited(result, {}, constants)


def parameters_of(limits: Range, *, symmetric: bool) -> tuple[float, int]:
    """Scale and zero point of signed 8-bit levels for a range that holds 0 (Jacob et al. 2018, section 2.1)."""
    low, high = limits
    scale = max(-low, high) / 127 if symmetric else (high - low) / 255
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    return scale, 0 if symmetric else int(np.clip(np.rint(-128 - low / scale), -128, 127))
