"""Linear layers of a Q/DQ graph as onnxruntime's integer kernels, and float ones with weights in integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vlm_edge.numerics.qdq_graph import MICROSOFT, Graph, attribute, edited
from vlm_edge.numerics.quant_blocks import Blocks, fitting_block, quantize_blocks, unpacked_blocks
from vlm_edge.numerics.quantization import quantize_weight

SMALLEST = 1024
"""Weights with fewer elements stay as they are in :func:`block_linears`."""
INTEGER_PRODUCTS = 4
"""MatMulNBits' ``accuracy_level`` at which the data is rounded to int8, too, a block at a time: 45 dB, and on VNNI 1.2
to 3 times as fast as products in float32 from 4 bits, up to 16 times from 8 bits."""


@dataclass(frozen=True)
class Linear:
    """``y = x @ weight + bias`` in a graph: a MatMul (with the Add after it) or a Gemm.

    ``weight`` names what the operator reads, float32; ``transposed`` when that is (out, in) instead of (in, out).
    ``output`` is the last node's output; ``last`` that node, which is ``node`` itself where there is no Add.
    """

    node: onnx.NodeProto
    last: onnx.NodeProto
    data: str
    weight: str
    transposed: bool
    bias: NDArray[np.float32] | None

    @property
    def output(self) -> str:
        return str(self.last.output[0])


def find_linears(graph: Graph) -> list[Linear]:
    """Every linear layer whose weight is a 2-D constant, as it is or dequantized, in the graph's order."""
    found = []
    for node in graph.nodes:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = _weight_value(graph, node.input[1])
        if weight is None or weight.ndim != 2:
            continue
        linear = _from_gemm(graph, node, weight) if node.op_type == "Gemm" else _from_matmul(graph, node, weight)
        if linear is not None:
            found.append(linear)
    return found


def lower_linears(model: onnx.ModelProto) -> onnx.ModelProto:
    """Q/DQ linear layers as QuantizeLinear and com.microsoft.MatMulIntegerToFloat, which runs in integers.

    What onnxruntime would fuse at load time, when no other fusion gets in between (MatMul and Add become a Gemm that
    the Q/DQ fusion then leaves alone), is written out: u8 or s8 data, s8 weight (in, out), float result, bias in
    float32. Linear layers whose data or weight has no per-tensor (weight: per-column) quantizer stay as they are.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    for linear in find_linears(graph):
        data, weight = graph.producers.get(linear.data), graph.producers.get(linear.weight)
        if data is None or weight is None or {data.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        levels, scales = _weight_levels(graph, weight, linear.transposed)
        scale = graph.constant(data.input[1])
        if levels is None or scale is None or scale.size != 1:
            continue
        stem = linear.weight
        constants |= {f"{stem}_levels": levels, f"{stem}_scales": scales, **_bias(linear)}
        zero_point = data.input[2] if len(data.input) > 2 else ""
        inputs = [data.input[0], f"{stem}_levels", data.input[1], f"{stem}_scales", zero_point, ""]
        _replace(graph, linear, "MatMulIntegerToFloat", inputs, replacements)
    return edited(model, replacements, constants)


def dynamic_linears(
    model: onnx.ModelProto, *, weight_bits: int = 8, left_out: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """Float linear layers as com.microsoft.DynamicQuantizeMatMul: s8 weights, and u8 data over its range in this run.

    Needs no calibration; the range is taken over all rows of a run, so a row's result depends on the others'. The nodes
    named in ``left_out`` stay as they are.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    for linear in find_linears(graph):
        weight = graph.constant(linear.weight)
        if weight is None or linear.node.name in left_out:
            continue
        levels, scales = quantize_weight(weight.T if linear.transposed else weight, axis=1, bits=weight_bits)
        stem = linear.weight
        constants |= {f"{stem}_levels": levels, f"{stem}_scales": scales, **_bias(linear)}
        inputs = [linear.data, f"{stem}_levels", f"{stem}_scales", ""]
        _replace(graph, linear, "DynamicQuantizeMatMul", inputs, replacements)
    return edited(model, replacements, constants)


def block_linears(
    model: onnx.ModelProto, *, bits: int, largest_block: int, left_out: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """Float linear layers as com.microsoft.MatMulNBits, with weights of 4 or 8 bits in blocks.

    A block has ``largest_block`` input channels, or half or a quarter as many (at least 32) where that leaves fewer
    to pad. onnxruntime and OpenVINO read it. Weights below :data:`SMALLEST` elements are left alone, and those of the
    nodes named in ``left_out``. Layers that share a weight, and read it in the same direction, share its blocks.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    for linear in find_linears(graph):
        weight = graph.constant(linear.weight)
        if weight is None or weight.dtype != np.float32 or weight.size < SMALLEST or linear.node.name in left_out:
            continue
        weight = weight.T if linear.transposed else weight
        stem = f"{linear.weight}_blocks_of_{'rows' if linear.transposed else 'columns'}"
        names = [f"{stem}_{part}" for part in ("levels", "scales", "zero_points")]
        block_size = fitting_block(weight.shape[0], largest_block)
        if names[0] not in constants:
            blocks = quantize_blocks(weight, bits, block_size)
            levels, zero_points = blocks.packed()
            constants |= dict(zip(names, (levels, blocks.scales, zero_points), strict=True))
        constants |= _bias(linear)
        size = {"K": weight.shape[0], "N": weight.shape[1], "bits": bits, "block_size": block_size}
        inputs = [linear.data, *names, ""]
        _replace(graph, linear, "MatMulNBits", inputs, replacements, **size, accuracy_level=INTEGER_PRODUCTS)
    return edited(model, replacements, constants)


def blocks_of(graph: Graph, node: onnx.NodeProto) -> Blocks | None:
    """The weight of a MatMulNBits, or None where it is computed."""
    levels, scales = graph.constant(node.input[1]), graph.constant(node.input[2])
    named = len(node.input) > 3 and bool(node.input[3])
    zero_points = graph.constant(node.input[3]) if named else None
    if levels is None or scales is None or (named and zero_points is None):
        return None
    sizes = {"bits": attribute(node, "bits", 4), "block_size": attribute(node, "block_size")}
    return unpacked_blocks(levels, scales, zero_points, **sizes, width=attribute(node, "K"))


def _replace(
    graph: Graph,
    linear: Linear,
    op_type: str,
    inputs: list[str],
    replacements: dict[int, list[onnx.NodeProto]],
    **attributes: int,
) -> None:
    """The kernel in the place of the layer's last node (the Add, if any), and nothing in the place of its first."""
    inputs = inputs if linear.bias is None else [*inputs, _bias_name(linear)]
    while not inputs[-1]:
        inputs = inputs[:-1]
    replacements[graph.position(linear.node)] = []
    kernel = helper.make_node(op_type, inputs, [linear.output], name=linear.last.name, domain=MICROSOFT, **attributes)
    replacements[graph.position(linear.last)] = [kernel]


def _from_matmul(graph: Graph, node: onnx.NodeProto, weight: NDArray[Any]) -> Linear:
    plain = Linear(node, node, node.input[0], node.input[1], False, None)
    add = graph.only_consumer(node.output[0], "Add")
    if add is None:
        return plain
    other = add.input[1] if add.input[0] == node.output[0] else add.input[0]
    bias = graph.constant(other)
    if bias is None or bias.size != weight.shape[1] or bias.shape[-1] != bias.size:
        return plain
    return Linear(node, add, node.input[0], node.input[1], False, bias.reshape(-1).astype(np.float32))


def _from_gemm(graph: Graph, node: onnx.NodeProto, weight: NDArray[Any]) -> Linear | None:
    transposed = bool(attribute(node, "transB", 0))
    plain = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0), attribute(node, "transA", 0)) == (1.0, 1.0, 0)
    if not plain:
        return None
    if len(node.input) < 3 or not node.input[2]:
        return Linear(node, node, node.input[0], node.input[1], transposed, None)
    bias = graph.constant(node.input[2])
    width = weight.shape[0 if transposed else 1]
    if bias is None or bias.size != width:
        return None
    return Linear(node, node, node.input[0], node.input[1], transposed, bias.reshape(-1).astype(np.float32))


def _weight_value(graph: Graph, name: str) -> NDArray[Any] | None:
    """The constant that ``name`` is, or the levels of the constant that it is dequantized from."""
    value = graph.constant(name)
    producer = graph.producers.get(name)
    if value is None and producer is not None and producer.op_type == "DequantizeLinear":
        return graph.constant(producer.input[0])
    return value


def _weight_levels(
    graph: Graph, node: onnx.NodeProto, transposed: bool
) -> tuple[NDArray[np.int8] | None, NDArray[np.float32]]:
    """Levels (in, out) and scales (out,) of a DequantizeLinear, or None where it isn't symmetric int8 by column."""
    levels, scales = graph.constant(node.input[0]), graph.constant(node.input[1])
    zero_point = graph.constant(node.input[2]) if len(node.input) > 2 else None
    nothing = None, np.empty(0, np.float32)
    if levels is None or scales is None or levels.dtype != np.int8 or (zero_point is not None and zero_point.any()):
        return nothing
    columns = 0 if transposed else 1
    if scales.size > 1 and attribute(node, "axis", 1) % 2 != columns:
        return nothing
    scales = np.broadcast_to(scales.reshape(-1), (levels.shape[columns],)).astype(np.float32)
    return np.ascontiguousarray(levels.T if transposed else levels), scales


def _bias_name(linear: Linear) -> str:
    return f"{linear.output}_bias"


def _bias(linear: Linear) -> dict[str, NDArray[np.float32]]:
    return {} if linear.bias is None else {_bias_name(linear): linear.bias}
