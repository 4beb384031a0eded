"""What OpenVINO's CPU plug-in can't take of a Q/DQ graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vlm_edge.numerics.qdq_graph import Graph, copied, edited

LARGEST_LOWEST = -1e4
"""Constants above this are no mask's."""


def float_concatenations(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which a Concat has float parts and a float result, unless a convolution reads it.

    OpenVINO 2026.4 takes the second dimension for channels: where quantizers stand around a Concat of tokens it gives
    every token of (batch, tokens, width) a zero point of its own, and then fails to compile the product
    ("MatMulTransformation ... callback has thrown").
    """
    result = copied(model)
    graph = Graph(result)
    for node in graph.nodes:
        if node.op_type != "Concat":
            continue
        quantizers = [each for each in graph.consumers[node.output[0]] if each.op_type == "QuantizeLinear"]
        restores = [each for quantizer in quantizers for each in graph.consumers[quantizer.output[0]]]
        readers = [reader for each in restores for reader in graph.consumers[each.output[0]]]
        if "Conv" in {reader.op_type for reader in (*graph.consumers[node.output[0]], *readers)}:
            continue
        for reader in readers:
            made = {each.output[0] for each in restores if each.op_type == "DequantizeLinear"}
            reader.input[:] = [node.output[0] if name in made else name for name in reader.input]
        for position, name in enumerate(node.input):
            restore = graph.producers.get(name)
            if restore is None or restore.op_type != "DequantizeLinear":
                continue
            quantize = graph.producers.get(restore.input[0])
            if quantize is not None and quantize.op_type == "QuantizeLinear":
                node.input[position] = quantize.input[0]
    return edited(result, {}, {})


def chosen_masks(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which ``(1 - Cast(mask)) * lowest`` is ``Where(mask, 0, lowest)``, for masks of 0 and 1.

    OpenVINO 2026.4 takes Cast, Sub and Mul by constants for a dequantization wherever a graph has quantizers, and moves
    it through the attention: with a past, a decoder's logits had a cosine of 0.96 with the graph's.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    for position, node in enumerate(graph.nodes):
        mask, lowest = _inverted_mask(graph, node)
        if lowest is None:
            continue
        stem = node.output[0]
        constants |= {f"{stem}_kept": np.zeros((), np.float32), f"{stem}_lowest": lowest}
        inputs = [f"{stem}_where", f"{stem}_kept", f"{stem}_lowest"]
        replacements[position] = [
            helper.make_node("Cast", [mask], [inputs[0]], name=f"{node.name}_mask", to=onnx.TensorProto.BOOL),
            helper.make_node("Where", inputs, [stem], name=node.name),
        ]
    return edited(model, replacements, constants)


def _inverted_mask(graph: Graph, node: onnx.NodeProto) -> tuple[str, NDArray[Any] | None]:
    """What is cast in ``(1 - Cast(mask)) * lowest``, and ``lowest``; or None where ``node`` is no such product."""
    nothing = "", None
    if node.op_type != "Mul":
        return nothing
    values = [graph.constant(name) for name in node.input]
    lowest = next((value for value in values if value is not None), None)
    inverted = next((graph.producers.get(name) for name in node.input if name in graph.producers), None)
    if lowest is None or lowest.size != 1 or lowest.item() > LARGEST_LOWEST or inverted is None:
        return nothing
    one = graph.constant(inverted.input[0]) if inverted.op_type == "Sub" else None
    cast = graph.producers.get(inverted.input[1]) if one is not None else None
    if one is None or one.size != 1 or one.item() != 1 or cast is None or cast.op_type != "Cast":
        return nothing
    return str(cast.input[0]), lowest.reshape(np.broadcast_shapes(one.shape, lowest.shape))
