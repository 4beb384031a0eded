"""Find linear layers, dense convolutions and quantizers in a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.edit import attribute, constant, maker, only_reader, optional_input, shape_of, tensor_of
from vlm_edge.graphs.ops import HEAVY_OPERATORS, SHAPE_OPERATORS

FEWEST_PRODUCTS = 64
"""Convolutions whose outputs add up fewer products stay float: the first one on an image's three channels adds 27, and
depthwise ones 9. Quantizing their data takes longer than their products."""


@dataclass(frozen=True)
class Linear:
    """``y = x @ weight + bias``: a MatMul (with the Add after it) or a Gemm.

    ``weight`` is the operator's input, float32; ``transposed`` when that is (out, in) instead of (in, out). ``last`` is
    the node whose output is the layer's: ``node`` itself where there is no Add.
    """

    node: ir.Node
    last: ir.Node
    transposed: bool
    bias: NDArray[np.float32] | None

    @property
    def data(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def weight(self) -> ir.Value:
        value = self.node.inputs[1]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        return self.last.outputs[0]

    def weight_by_input(self) -> NDArray[Any] | None:
        """The weight as (in, out), None where it isn't a constant."""
        weight = constant(self.weight)
        return weight.T if weight is not None and self.transposed else weight


def find_linears(graph: ir.Graph) -> list[Linear]:
    """Every linear layer whose weight is a 2-D constant, as it is or dequantized, in the graph's order."""
    found = []
    for node in graph:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = tensor_of(node.inputs[1])
        if weight is None and (restore := maker(node.inputs[1], "DequantizeLinear")) is not None:
            weight = tensor_of(restore.inputs[0])
        if weight is None or len(weight.shape) != 2:
            continue
        shape = shape_of(weight)
        linear = _from_gemm(node, shape) if node.op_type == "Gemm" else _from_matmul(node, shape)
        if linear is not None:
            found.append(linear)
    return found


def _from_matmul(node: ir.Node, shape: tuple[int, ...]) -> Linear:
    add = only_reader(node.outputs[0], "Add")
    bias = None
    if add is not None:
        bias = constant(add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0])
    if add is None or bias is None or bias.size != shape[1] or bias.shape[-1:] != (bias.size,):
        return Linear(node, node, False, None)
    return Linear(node, add, False, bias.reshape(-1).astype(np.float32))


def _from_gemm(node: ir.Node, shape: tuple[int, ...]) -> Linear | None:
    transposed = bool(attribute(node, "transB", 0))
    if (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0), attribute(node, "transA", 0)) != (1.0, 1.0, 0):
        return None
    added = optional_input(node, 2)
    if added is None:
        return Linear(node, node, transposed, None)
    bias = constant(added)
    if bias is None or bias.size != shape[0 if transposed else 1]:
        return None
    return Linear(node, node, transposed, bias.reshape(-1).astype(np.float32))


def find_convolutions(graph: ir.Graph) -> list[ir.Node]:
    """Dense 2-D convolutions with float32 constants as weight and bias that are worth integer arithmetic."""
    found = []
    for node in graph:
        if node.op_type != "Conv" or attribute(node, "group", 1) != 1 or convolution_bias(node) is None:
            continue
        weight = tensor_of(node.inputs[1])
        if weight is None or weight.dtype != ir.DataType.FLOAT or len(weight.shape) != 4:
            continue
        if math.prod(shape_of(weight)[1:]) >= FEWEST_PRODUCTS and not node.outputs[0].is_graph_output():
            found.append(node)
    return found


def convolution_bias(node: ir.Node) -> NDArray[Any] | None:
    """The bias, 0 where there is none, and None where it is computed."""
    bias = optional_input(node, 2)
    return np.zeros(1, np.float32) if bias is None else constant(bias)


@dataclass(frozen=True)
class Quantizer:
    """A quantizer by tensor, or of a weight; ``at`` is the output of its DequantizeLinear."""

    at: ir.Value
    scale: NDArray[Any]
    zero_point: NDArray[Any]

    def is_like(self, other: Quantizer) -> bool:
        """Whether scale and zero point are the same."""
        return bool(np.array_equal(self.scale, other.scale) and np.array_equal(self.zero_point, other.zero_point))


def quantizer_above(value: ir.Value | None) -> Quantizer | None:
    """The quantizer that ``value``'s numbers come from, found above operators that only move elements."""
    node = maker(value)
    if node is None:
        return None
    if node.op_type == "DequantizeLinear":
        scale, levels = constant(node.inputs[1]), tensor_of(node.inputs[0])
        if scale is None or (scale.size > 1 and levels is None):
            return None
        named = optional_input(node, 2)
        if named is not None and tensor_of(named) is None:
            return None
        return Quantizer(node.outputs[0], scale, zero_point_of(node))
    if node.op_type in SHAPE_OPERATORS:
        return _by_tensor(quantizer_above(node.inputs[0]))
    if node.op_type == "Concat":
        found = [_by_tensor(quantizer_above(part)) for part in node.inputs]
        first = found[0]
        return first if first and all(other and first.is_like(other) for other in found) else None
    return None


def _by_tensor(quantizer: Quantizer | None) -> Quantizer | None:
    return quantizer if quantizer and quantizer.scale.size == 1 else None


def is_integer(node: ir.Node) -> bool:
    """Whether both factors of a heavy operator are quantized, so that it can run in integers."""
    return node.op_type in HEAVY_OPERATORS and all(quantizer_above(value) for value in node.inputs[:2])


def zero_point_of(node: ir.Node) -> NDArray[Any]:
    """The zero point of a QuantizeLinear or DequantizeLinear; zero where it names none.

    Raises:
        ValueError: it is computed.
    """
    named = optional_input(node, 2)
    if named is not None:
        value = constant(named)
        if value is None:
            raise ValueError(f"{node.op_type} {node.name}: its zero point is computed, not constant")
        return value
    scale, source = constant(node.inputs[1]), tensor_of(node.inputs[0])
    if source is not None:
        dtype = source.dtype.numpy()
    else:
        dtype = np.dtype(np.int8 if attribute(node, "output_dtype", 0) == ir.DataType.INT8 else np.uint8)
    return np.zeros(() if scale is None else scale.shape, dtype)


def is_activation_pair(node: ir.Node | None) -> bool:
    """Whether ``node`` is a DequantizeLinear behind the QuantizeLinear of something computed."""
    if node is None or node.op_type != "DequantizeLinear":
        return False
    quantize = maker(node.inputs[0], "QuantizeLinear")
    return quantize is not None and tensor_of(quantize.inputs[0]) is None
