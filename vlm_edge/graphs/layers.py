"""List the quantized layers of a graph, each beside its float original, with their names in the model.

Signal to quantization noise in dB: 10 log10(sum x^2 / sum (x - x_quantized)^2), as onnxruntime's own quantization
debugger reports it by tensor (onnxruntime.quantization.qdq_loss_debug).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.edit import attribute, constant, maker, only_reader, optional_input, tensor_of
from vlm_edge.graphs.match import find_linears
from vlm_edge.graphs.ops import HEAVY_OPERATORS, SHAPE_OPERATORS
from vlm_edge.graphs.passes.lower_linears import blocks_of
from vlm_edge.quantizers.affine import Agreement, Float, dequantize, quantize

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_KERNELS = {
    "MatMulIntegerToFloat": (1, 3), "DynamicQuantizeMatMul": (1, 2), "MatMulNBits": (1, 2),
    "GatherBlockQuantized": (0, 2), "QLinearConv": (3, 4, 5),
}  # fmt: skip
"""Operator -> positions of the inputs that make up its weight."""


@dataclass(frozen=True)
class InputQuantizer:
    """The float tensor that a layer's input was quantized from, with the quantizer's scale and zero point.

    in_float_graph: the quantized graph has no such tensor, since the kernel before rounds what it writes.
    """

    tensor: str
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    in_float_graph: bool = False

    def error(self, values: Float) -> tuple[Float, Float]:
        """Signal-to-noise pair: ``values``, and the same after rounding."""
        return values, dequantize(quantize(values, self.scale, self.zero_point), self.scale, self.zero_point)


@dataclass(frozen=True)
class IntegerOutput:
    """The tensor of integers that a layer writes in place of its float output, with its scale and zero point."""

    tensor: str
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer with a quantized weight; ``output`` is a tensor of the float graph.

    The quantized graph has it, too, unless it writes ``integers``. Weights are computed when they are read.
    """

    name: str
    node: ir.Node
    output: str
    original: ir.Value
    transposed: bool
    input: InputQuantizer | None
    integers: IntegerOutput | None = None

    @property
    def operator(self) -> str:
        return self.node.op_type

    @property
    def weight(self) -> Float | None:
        """The dequantized weight, (in, out) for a linear layer."""
        return quantized_weight(self.node)

    @property
    def float_weight(self) -> Float | None:
        """The original, the same way round."""
        weight = constant(self.original)
        return weight.T if weight is not None and self.transposed else weight

    @property
    def written(self) -> str:
        """The tensor of the quantized graph to read for :meth:`result`."""
        return self.output if self.integers is None else self.integers.tensor

    def result(self, written: NDArray[Any]) -> Float:
        """The layer's output in real numbers."""
        return written if self.integers is None else dequantize(written, self.integers.scale, self.integers.zero_point)

    @property
    def weight_sqnr_db(self) -> float | None:
        weight, original = self.weight, self.float_weight
        if weight is None or original is None or weight.shape != original.shape:
            return None
        found = Agreement()
        found.add(original, weight)
        return found.sqnr_db


def quantized_layers(floating: ir.Model, quantized: ir.Model) -> list[QuantizedLayer]:
    """Every layer whose weight is quantized, in the graph's order.

    Args:
        floating: the graph that ``quantized`` was made from; a layer is found there by its output's name (a
            QLinearConv, whose output is another one, by its own name), and one that is not there is left out.
    """
    originals = {found[0]: found[1:] for found in _float_layers(floating.graph)}
    convolutions = {str(node.name): str(node.outputs[0].name) for node in floating.graph if node.op_type == "Conv"}
    layers = []
    for node in quantized.graph:
        integers = _integer_output(node)
        output = str(node.outputs[0].name) if integers is None else convolutions.get(str(node.name), "")
        if output not in originals or not has_quantized_weight(node):
            continue
        name, weight, transposed = originals[output]
        unread = node.op_type in ("DynamicQuantizeMatMul", "GatherBlockQuantized")
        quantizer = None if unread else _input_quantizer(node.inputs[0], convolutions)
        layers.append(QuantizedLayer(name or str(node.name), node, output, weight, transposed, quantizer, integers))
    return layers


def layer_names(model: ir.Model) -> dict[str, str]:
    """Node name of every heavy operator -> the module whose weight or bias it reads, or that it was exported from; its
    own name where neither is known. A product of two activations adds its own name to the module's."""
    names = {}
    for node in model.graph:
        if node.op_type in HEAVY_OPERATORS:
            add = only_reader(node.outputs[0], "Add")
            scope = module_scope(node)
            if scope and tensor_of(node.inputs[1]) is None:
                scope = f"{scope}/{node.name}"
            found = _layer_name((*node.inputs[1:], *(add.inputs if add else ())))
            names[str(node.name)] = found or scope or str(node.name)
    return names


def module_scope(node: ir.Node) -> str:
    """The path of the torch module that a node was exported from; empty where the exporter left no note.

    torch.onnx writes ``['', 'model.layers.0', 'model.layers.0.up_proj', 'linear_3']`` into the node's metadata: the
    modules from the outermost on, then the operator (torch.onnx._internal.exporter._core, ``_set_node_metadata``).
    """
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPES_KEY, ""))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _float_layers(graph: ir.Graph) -> Iterator[tuple[str, str, ir.Value, bool]]:
    """(output, name, weight, transposed) of every layer with a constant weight; a linear layer by its product and by
    its sum."""
    for linear in find_linears(graph):
        if tensor_of(linear.weight) is not None:
            name = _layer_name((linear.weight, *linear.node.inputs[2:], *linear.last.inputs))
            name = name or module_scope(linear.node)
            for output in dict.fromkeys((linear.node.outputs[0], linear.output)):
                yield str(output.name), name, linear.weight, linear.transposed
    for node in graph:
        position = {"Conv": 1, "ConvTranspose": 1, "Gather": 0}.get(node.op_type)
        weight = node.inputs[position] if position is not None else None
        tensor = tensor_of(weight)
        if weight is not None and tensor is not None and tensor.dtype == ir.DataType.FLOAT:
            yield str(node.outputs[0].name), _layer_name(node.inputs), weight, False


def _layer_name(values: Iterable[ir.Value | None]) -> str:
    """The module that a weight or bias among the values belongs to: ``encoder.layers.0.mlp.fc1``; empty for none.

    An exporter names a parameter as its module does; what it computes (a transposed weight) has a name of its own.
    """
    for value in values:
        module, dot, leaf = ("" if value is None else str(value.name)).rpartition(".")
        known = dot and leaf in ("weight", "weight_transposed", "bias")
        if known and value is not None and value.is_initializer():
            return module
    return ""


def has_quantized_weight(node: ir.Node) -> bool:
    """Whether :func:`quantized_weight` gives one."""
    if node.op_type in _KERNELS:
        return all(tensor_of(node.inputs[position]) is not None for position in _KERNELS[node.op_type])
    if node.op_type != "Gather" and node.op_type not in HEAVY_OPERATORS:
        return False
    restore = maker(node.inputs[node.op_type != "Gather"], "DequantizeLinear", "Mul")
    if restore is None or tensor_of(restore.inputs[1]) is None:
        return False
    source = restore if restore.op_type == "DequantizeLinear" else maker(restore.inputs[0], "Cast")
    tensor = None if source is None else tensor_of(source.inputs[0])
    return tensor is not None and (source is restore or tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8))


def quantized_weight(node: ir.Node) -> Float | None:
    """A layer's dequantized weight: (in, out) for a linear layer; None where it isn't quantized."""
    if node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul"):
        values, scales = (constant(node.inputs[position]) for position in _KERNELS[node.op_type])
        return None if values is None or scales is None else scales * values.astype(np.float32)
    if node.op_type == "MatMulNBits":
        blocks = blocks_of(node)
        return None if blocks is None else blocks.restored()
    if node.op_type == "GatherBlockQuantized":
        return _table_rows(node)
    if node.op_type == "QLinearConv":
        values, scales, zero_points = (constant(value) for value in node.inputs[3:6])
        if values is None or scales is None or zero_points is None:
            return None
        channels = (-1, *[1] * (values.ndim - 1))
        return dequantize(values, scales.reshape(channels), zero_points.reshape(channels))
    position = 0 if node.op_type == "Gather" else 1 if node.op_type in HEAVY_OPERATORS else None
    if position is None:
        return None
    weight = restored_constant(node.inputs[position])
    transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
    return weight.T if weight is not None and transposed else weight


def restored_constant(value: ir.Value | None) -> Float | None:
    """A constant that DequantizeLinear, or Cast and Mul, make of integers."""
    node = maker(value, "DequantizeLinear", "Mul")
    if node is not None and node.op_type == "DequantizeLinear":
        return dequantized_constant(node)
    cast = maker(node.inputs[0], "Cast") if node is not None else None
    if node is None or cast is None:
        return None
    values, scales = constant(cast.inputs[0]), constant(node.inputs[1])
    if values is not None and scales is not None and values.dtype in (np.int8, np.uint8):
        return scales * values.astype(np.float32)
    return None


def dequantized_constant(node: ir.Node) -> Float | None:
    """The output of a DequantizeLinear of constants, by tensor, channel or block; None where one is computed."""
    values, scales = constant(node.inputs[0]), constant(node.inputs[1])
    if values is None or scales is None:
        return None
    zero_points = constant(optional_input(node, 2))
    axis, block = attribute(node, "axis", 1) % max(values.ndim, 1), attribute(node, "block_size", 0)
    if block:
        places = np.arange(values.shape[axis]) // block
        zeros = np.zeros_like(scales) if zero_points is None else zero_points.astype(np.float32)
        return dequantize(values, scales.take(places, axis), zeros.take(places, axis))
    shape = [-1 if scales.size > 1 and index == axis else 1 for index in range(values.ndim)]
    zeros = np.zeros_like(scales, values.dtype) if zero_points is None else zero_points
    return dequantize(values, scales.reshape(shape), zeros.reshape(shape))


def _table_rows(node: ir.Node) -> Float | None:
    """The table of a GatherBlockQuantized as CompressTables writes it: blocks of columns, zero point 128."""
    values, scales, block = constant(node.inputs[0]), constant(node.inputs[2]), attribute(node, "block_size", 0)
    if values is None or scales is None or not block:
        return None
    columns = np.repeat(scales, block, axis=1)[:, : values.shape[1]]
    return columns * (values.astype(np.float32) - 128)


def _integer_output(node: ir.Node) -> IntegerOutput | None:
    """Scale and zero point of QLinearConv's output (ONNX: ``y_scale`` and ``y_zero_point`` are its inputs 6 and 7)."""
    if node.op_type != "QLinearConv":
        return None
    scale, zero_point = (constant(value) for value in node.inputs[6:8])
    if scale is None or zero_point is None or scale.size != 1:
        return None
    return IntegerOutput(str(node.outputs[0].name), scale.reshape(()), zero_point.reshape(()))


def _input_quantizer(value: ir.Value | None, convolutions: Mapping[str, str]) -> InputQuantizer | None:
    """The quantizer that a layer's input comes from, through operators that only move elements.

    Args:
        convolutions: name of a convolution -> its output in the float graph.
    """
    node = maker(value)
    while node is not None and (node.op_type == "DequantizeLinear" or node.op_type in SHAPE_OPERATORS):
        node = maker(node.inputs[0])
    integers = None if node is None else _integer_output(node)
    if node is not None and integers is not None and node.name in convolutions:
        return InputQuantizer(convolutions[str(node.name)], integers.scale, integers.zero_point, in_float_graph=True)
    if node is None or node.op_type != "QuantizeLinear" or node.inputs[0] is None:
        return None
    scale, named = constant(node.inputs[1]), optional_input(node, 2)
    zero_point = np.zeros(1, np.uint8) if named is None else constant(named)
    if scale is None or zero_point is None or scale.size != 1:
        return None
    return InputQuantizer(str(node.inputs[0].name), scale.reshape(()), zero_point.reshape(()))
