"""Write convolutions between Q/DQ pairs as onnxruntime's QLinearConv."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.edit import Editor, constant, done, maker, only_reader, tensor_of
from vlm_edge.graphs.match import convolution_bias
from vlm_edge.graphs.passes.compress_weights import cast_weight

LARGEST_BIAS = 2**30
"""In steps of data scale times weight scale: half of what int32 holds is left for the products."""


class LowerConvolutions(ir.passes.InPlacePass):
    """Convolutions between pairs become QLinearConv, whose bias is int32 in steps of data scale times weight scale.

    A convolution with an int8 weight whose data or output has no pair computes in float from that weight.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        kept: dict[ir.Value, list[ir.Value]] = {}
        floating: dict[ir.Node, ir.Value] = {}
        for node in list(model.graph):
            restore = maker(node.inputs[1], "DequantizeLinear") if node.op_type == "Conv" else None
            bias = convolution_bias(node) if restore is not None else None
            if restore is None or bias is None or tensor_of(restore.inputs[0]) is None:
                continue
            data, quantize = maker(node.inputs[0], "DequantizeLinear"), only_reader(node.outputs[0], "QuantizeLinear")
            levels, scales = constant(restore.inputs[0]), constant(restore.inputs[1])
            assert levels is not None
            assert scales is not None
            if data is None or quantize is None:
                if restore not in floating:
                    stem = str(restore.outputs[0].name)
                    floating[restore] = cast_weight(editor, restore, stem, levels, scales, 0)
                node.replace_input_with(1, floating[restore])
                continue
            data_scale = constant(data.inputs[1])
            assert data_scale is not None
            scales = np.broadcast_to(scales.reshape(-1), levels.shape[:1]).astype(np.float32)
            levels, wider, steps = _with_bias_steps(levels, scales, float(data_scale.item()), bias)
            own, shared = not np.array_equal(wider, scales), restore.outputs[0]
            if own or shared not in kept:
                stem = str(node.name if own else shared.name)
                parts = {"levels": levels, "channel_scales": wider, "zeros": np.zeros(scales.shape, np.int8)}
                weight_inputs = [editor.constant(f"{stem}_{part}", array) for part, array in parts.items()]
                if not own:
                    kept[shared] = weight_inputs
            else:
                weight_inputs = kept[shared]
            steps_of = editor.constant(f"{node.name}_bias_levels", steps)
            inputs = [*data.inputs[:3], *weight_inputs, *quantize.inputs[1:3], steps_of]
            kernel = editor.replace(quantize, "QLinearConv", inputs, name=node.name)
            kernel.attributes.update(node.attributes)
            model.graph.remove(node, safe=True)
        return done(model)


def _with_bias_steps(
    levels: NDArray[np.int8], scales: NDArray[np.float32], data_scale: float, bias: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """A weight's values (channels, ...) and scales (channels,), and the bias as int32 in steps of their products.

    Where a channel's weights are next to nothing beside its bias (a normalization folded in that has switched the
    channel off), the bias doesn't fit: that channel gets a larger scale, with which it does.
    """
    bias = np.broadcast_to(bias.reshape(-1), scales.shape).astype(np.float64)
    wider = np.maximum(scales, np.abs(bias) / (data_scale * LARGEST_BIAS)).astype(np.float32)
    shares = (scales / wider).reshape(-1, *[1] * (levels.ndim - 1))
    steps = np.rint(bias / (data_scale * wider.astype(np.float64)))
    return np.rint(levels * shares).astype(np.int8), wider, steps.astype(np.int32)
