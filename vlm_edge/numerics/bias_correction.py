"""Biases of linear layers corrected for what rounding their weights adds on average, where that helps.

The rounded weight W_q gives on average (W_q - W) E[x] too much, which the bias can take back (Nagel et al. 2019,
arXiv:1906.04721, section 4.2). E[x] is a layer's mean input by channel over the calibration inputs. A correction is
accepted when the error that is left is smaller on held-out inputs, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vlm_edge.numerics.qdq_graph import Graph, edited
from vlm_edge.numerics.qdq_lower import Linear, find_linears
from vlm_edge.numerics.quantization import Float, dequantize

Means = Mapping[str, Float]
"""A linear layer's input tensor -> its mean by channel."""


def correct_biases(
    floating: onnx.ModelProto, quantized: onnx.ModelProto, means: Means, held_out: Means
) -> tuple[onnx.ModelProto, list[str]]:
    """The Q/DQ graph with corrected biases, and the names of the nodes whose layers' biases were corrected.

    Args:
        floating: the graph that ``quantized`` was made from, with the same node names.
        means: over the calibration inputs.
        held_out: over inputs that nothing was calibrated on; a layer whose input it lacks keeps its bias.
    """
    before, after = Graph(floating), Graph(quantized)
    originals = {linear.node.name: linear for linear in find_linears(before)}
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    accepted = []
    for linear in find_linears(after):
        original = originals.get(linear.node.name)
        if original is None or linear.bias is None or not {original.data} <= means.keys() & held_out.keys():
            continue
        error = _weight_error(before, original, after, linear)
        if error is None or error.shape[0] != len(means[original.data]):
            continue
        shift, wanted = means[original.data] @ error, held_out[original.data] @ error
        if np.square(wanted - shift).sum() >= np.square(wanted).sum():
            continue
        name = f"{linear.output}_corrected_bias"
        constants[name] = (linear.bias + shift).astype(np.float32)
        replacements[after.position(linear.last)] = [_with_bias(after, linear, name)]
        accepted.append(linear.node.name)
    return edited(quantized, replacements, constants), accepted


def _weight_error(before: Graph, original: Linear, after: Graph, linear: Linear) -> Float | None:
    """W - W_q as (in, out); None where the weight isn't rounded by channel."""
    weight = before.constant(original.weight)
    restore = after.producers.get(linear.weight)
    if weight is None or restore is None or restore.op_type != "DequantizeLinear":
        return None
    levels, scales = after.constant(restore.input[0]), after.constant(restore.input[1])
    zero_point = after.constant(restore.input[2]) if len(restore.input) > 2 else np.zeros(1, np.int8)
    if levels is None or scales is None or zero_point is None or levels.shape != weight.shape:
        return None
    shape = (-1, 1) if linear.transposed else (1, -1)
    error: Float = weight - dequantize(levels, scales.reshape(shape), zero_point.reshape(shape))
    return error.T if linear.transposed else error


def _with_bias(graph: Graph, linear: Linear, name: str) -> onnx.NodeProto:
    """The layer's last node (a Gemm, or the Add after a MatMul) with another bias."""
    node = onnx.NodeProto()
    node.CopyFrom(linear.last)
    if linear.last is linear.node:
        node.input[2] = name
    else:
        node.input[0 if graph.constant(node.input[0]) is not None else 1] = name
    return node
