"""Rewrite the patterns of a Q/DQ graph that OpenVINO's CPU plug-in gets wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.edit import Editor, constant, done, maker, reroute

LARGEST_LOWEST = -1e4
"""Constants above this are no mask's."""


class FloatConcatenations(ir.passes.InPlacePass):
    """Give a Concat float parts and a float result, unless a convolution reads it.

    OpenVINO 2026.4 takes the second dimension for channels: where quantizers stand around a Concat of tokens it gives
    every token of (batch, tokens, width) a zero point of its own, and then fails to compile the product
    ("MatMulTransformation ... callback has thrown").
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in list(model.graph):
            if node.op_type != "Concat":
                continue
            output = node.outputs[0]
            quantizers = [each for each in output.consumers() if each.op_type == "QuantizeLinear"]
            restores = [each for quantizer in quantizers for each in quantizer.outputs[0].consumers()]
            readers = [reader for each in restores for reader in each.outputs[0].consumers()]
            if "Conv" in {reader.op_type for reader in (*output.consumers(), *readers)}:
                continue
            for each in restores:
                if each.op_type == "DequantizeLinear":
                    reroute(each.outputs[0], output)
            for position, value in enumerate(node.inputs):
                restore = maker(value, "DequantizeLinear")
                quantize = maker(restore.inputs[0], "QuantizeLinear") if restore is not None else None
                if quantize is not None:
                    node.replace_input_with(position, quantize.inputs[0])
        return done(model)


class ChooseMasks(ir.passes.InPlacePass):
    """``(1 - Cast(mask)) * lowest`` becomes ``Where(mask, 0, lowest)``, for masks of 0 and 1.

    OpenVINO 2026.4 takes Cast, Sub and Mul by constants for a dequantization wherever a graph has quantizers, and moves
    it through the attention: with a past, a decoder's logits had a cosine of 0.96 with the graph's.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        for node in list(model.graph):
            mask, lowest = _inverted_mask(node)
            if lowest is None:
                continue
            stem = node.outputs[0].name
            chosen = editor.op(
                node, "Cast", [mask], f"{stem}_where", name=f"{node.name}_mask", to=int(ir.DataType.BOOL)
            )
            zero = editor.constant(f"{stem}_kept", np.zeros((), np.float32))
            editor.replace(node, "Where", [chosen, zero, editor.constant(f"{stem}_lowest", lowest)])
        return done(model)


def _inverted_mask(node: ir.Node) -> tuple[ir.Value | None, NDArray[Any] | None]:
    """``mask`` and ``lowest`` of a product ``(1 - Cast(mask)) * lowest``; None for both where ``node`` is none."""
    nothing = None, None
    if node.op_type != "Mul":
        return nothing
    lowest = next((numbers for value in node.inputs if (numbers := constant(value)) is not None), None)
    inverted = next((found for value in node.inputs if (found := maker(value, "Sub")) is not None), None)
    if lowest is None or lowest.size != 1 or lowest.item() > LARGEST_LOWEST or inverted is None:
        return nothing
    one, cast = constant(inverted.inputs[0]), maker(inverted.inputs[1], "Cast")
    if one is None or one.size != 1 or one.item() != 1 or cast is None:
        return nothing
    return cast.inputs[0], lowest.reshape(np.broadcast_shapes(one.shape, lowest.shape))
