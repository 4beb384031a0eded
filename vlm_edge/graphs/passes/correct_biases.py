"""Correct biases of linear layers for the mean error of their rounded weights, where that helps.

The rounded weight W_q gives on average (W_q - W) E[x] too much, which the bias can take back (Nagel et al. 2019,
arXiv:1906.04721, section 4.2). E[x] is a layer's mean input by channel over the calibration inputs. A correction is
accepted when the error that is left is smaller on held-out inputs, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vlm_edge.graphs.edit import Editor, constant, maker, optional_input, remove_unused, tensor_of
from vlm_edge.graphs.match import Linear, find_linears
from vlm_edge.quantizers.affine import Float, dequantize

Means = Mapping[str, Float]
"""A linear layer's input tensor -> its mean by channel."""


def correct_biases(floating: ir.Model, quantized: ir.Model, means: Means, held_out: Means) -> list[str]:
    """Correct biases of the Q/DQ graph in place; the names of the nodes whose layers' biases were corrected.

    Args:
        floating: the graph that ``quantized`` was made from, with the same node names.
        means: over the calibration inputs.
        held_out: over inputs that nothing was calibrated on; a layer whose input it lacks keeps its bias.
    """
    originals = {linear.node.name: linear for linear in find_linears(floating.graph)}
    editor, accepted = Editor(quantized.graph), []
    for linear in find_linears(quantized.graph):
        original = originals.get(linear.node.name)
        if original is None or linear.bias is None:
            continue
        tensor = str(original.data.name)
        if tensor not in means or tensor not in held_out:
            continue
        error = _weight_error(original, linear)
        if error is None or error.shape[0] != len(means[tensor]):
            continue
        shift, wanted = means[tensor] @ error, held_out[tensor] @ error
        if np.square(wanted - shift).sum() >= np.square(wanted).sum():
            continue
        bias = editor.constant(f"{linear.output.name}_corrected_bias", (linear.bias + shift).astype(np.float32))
        linear.last.replace_input_with(_bias_position(linear), bias)
        accepted.append(str(linear.node.name))
    remove_unused(quantized)
    return accepted


def _weight_error(original: Linear, linear: Linear) -> Float | None:
    """W - W_q as (in, out); None where the weight isn't rounded by channel."""
    weight, restore = constant(original.weight), maker(linear.weight, "DequantizeLinear")
    if weight is None or restore is None:
        return None
    levels, scales, named = constant(restore.inputs[0]), constant(restore.inputs[1]), optional_input(restore, 2)
    zero_point = np.zeros(1, np.int8) if named is None else constant(named)
    if levels is None or scales is None or zero_point is None or levels.shape != weight.shape:
        return None
    shape = (-1, 1) if linear.transposed else (1, -1)
    error: Float = weight - dequantize(levels, scales.reshape(shape), zero_point.reshape(shape))
    return error.T if linear.transposed else error


def _bias_position(linear: Linear) -> int:
    """Of the bias among the inputs of the layer's last node: a Gemm, or the Add after a MatMul."""
    if linear.last is linear.node:
        return 2
    return 0 if tensor_of(linear.last.inputs[0]) is not None else 1
