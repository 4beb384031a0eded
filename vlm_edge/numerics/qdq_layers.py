"""The quantized layers of a graph, each beside its float original: what rounding its weight alone adds, and its input.

Signal to quantization noise in dB: 10 log10(sum x^2 / sum (x - x_quantized)^2), as onnxruntime's own quantization
debugger reports it by tensor (onnxruntime.quantization.qdq_loss_debug).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vlm_edge.numerics.qdq_graph import SHAPE_OPERATORS, Graph
from vlm_edge.numerics.qdq_lower import blocks_of, find_linears
from vlm_edge.numerics.qdq_retarget import HEAVY_OPERATORS
from vlm_edge.numerics.quantization import Agreement, Float, dequantize, quantize

SCOPES_KEY = "pkg.torch.onnx.name_scopes"

_KERNELS = {"MatMulIntegerToFloat": (1, 3), "DynamicQuantizeMatMul": (1, 2)}
"""Operator -> positions of the levels and of their scales among its inputs."""


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
        """``values``, and what is left of them after rounding."""
        return values, dequantize(quantize(values, self.scale, self.zero_point), self.scale, self.zero_point)


@dataclass(frozen=True)
class OutputLevels:
    """The tensor of integers that a layer writes in place of its float output, and what they stand for."""

    tensor: str
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer with a quantized weight; ``output`` is a tensor of the float graph.

    ``weight`` and ``float_weight`` are of one shape, None where there is no float one to compare with. The quantized
    graph has ``output``, too, unless there are ``levels``.
    """

    name: str
    operator: str
    output: str
    weight: Float | None
    float_weight: Float | None
    input: InputQuantizer | None
    levels: OutputLevels | None = None

    @property
    def written(self) -> str:
        """The tensor of the quantized graph to read for :meth:`result`."""
        return self.output if self.levels is None else self.levels.tensor

    def result(self, written: NDArray[Any]) -> Float:
        """The layer's output in real numbers."""
        return written if self.levels is None else dequantize(written, self.levels.scale, self.levels.zero_point)

    @property
    def weight_sqnr_db(self) -> float | None:
        if self.weight is None or self.float_weight is None or self.weight.shape != self.float_weight.shape:
            return None
        found = Agreement()
        found.add(self.float_weight, self.weight)
        return found.sqnr_db


def quantized_layers(floating: onnx.ModelProto, quantized: onnx.ModelProto) -> list[QuantizedLayer]:
    """Every layer whose weight is quantized, in the graph's order.

    Args:
        floating: the graph that ``quantized`` was made from; a layer is found there by its output's name (a
            QLinearConv, whose output is another one, by its own name), and one that is not there is left out.
    """
    before, after = Graph(floating), Graph(quantized)
    originals = {name: (layer, weight) for name, layer, weight in _float_layers(before)}
    convolutions = {node.name: node.output[0] for node in before.nodes if node.op_type == "Conv"}
    layers = []
    for node in after.nodes:
        weight, levels = quantized_weight(after, node), _output_levels(after, node)
        output = node.output[0] if levels is None else convolutions.get(node.name, "")
        if weight is None or output not in originals:
            continue
        name, original = originals[output]
        data = None if node.op_type in ("DynamicQuantizeMatMul", "GatherBlockQuantized") else node.input[0]
        quantizer = _input_quantizer(after, data, convolutions) if data is not None else None
        layers.append(QuantizedLayer(name or node.name, node.op_type, output, weight, original, quantizer, levels))
    return layers


def layer_names(model: onnx.ModelProto) -> dict[str, str]:
    """Node name of every heavy operator -> the module whose weight or bias it reads, or that it was exported from; its
    own name if nothing tells. A product of two activations has its own name behind the module's."""
    graph = Graph(model)
    names = {}
    for node in graph.nodes:
        if node.op_type in HEAVY_OPERATORS:
            add = graph.only_consumer(node.output[0], "Add")
            scope = module_scope(node)
            if scope and graph.constant(node.input[1]) is None:
                scope = f"{scope}/{node.name}"
            found = _layer_name(graph, (*node.input[1:], *(add.input if add else ())))
            names[node.name] = found or scope or node.name
    return names


def module_scope(node: onnx.NodeProto) -> str:
    """The path of the torch module that a node was exported from; empty where the exporter left no note.

    torch.onnx writes ``['', 'model.layers.0', 'model.layers.0.up_proj', 'linear_3']`` into the node's metadata: the
    modules from the outermost on, then the operator (torch.onnx._internal.exporter._core, ``_set_node_metadata``).
    """
    text = next((item.value for item in node.metadata_props if item.key == SCOPES_KEY), "")
    scopes = re.findall(r"'([^']*)'", text)
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _float_layers(graph: Graph) -> Iterator[tuple[str, str, Float]]:
    """(output, name, weight) of every layer with a constant weight; a linear layer by its product and by its sum."""
    for linear in find_linears(graph):
        weight = graph.constant(linear.weight)
        if weight is not None:
            name = _layer_name(graph, (linear.weight, *linear.node.input[2:], *linear.last.input))
            name = name or module_scope(linear.node)
            oriented = weight.T if linear.transposed else weight
            yield linear.node.output[0], name, oriented
            yield linear.output, name, oriented
    for node in graph.nodes:
        position = {"Conv": 1, "ConvTranspose": 1, "Gather": 0}.get(node.op_type)
        weight = graph.constant(node.input[position]) if position is not None else None
        if weight is not None and weight.dtype == np.float32:
            yield node.output[0], _layer_name(graph, node.input), weight


def _layer_name(graph: Graph, tensors: Iterable[str]) -> str:
    """The module that a weight or bias among the tensors belongs to: ``encoder.layers.0.mlp.fc1``; empty if none tells.

    An exporter names a parameter as its module does; what it computes (a transposed weight) has a name of its own.
    """
    for tensor in tensors:
        module, dot, leaf = tensor.rpartition(".")
        if dot and leaf in ("weight", "weight_transposed", "bias") and tensor in graph.initializers:
            return str(module)
    return ""


def quantized_weight(graph: Graph, node: onnx.NodeProto) -> Float | None:
    """A layer's weight as its quantized constant stands for it: (in, out) for a linear layer; None if it has none."""
    if node.op_type in _KERNELS:
        levels, scales = (graph.constant(node.input[position]) for position in _KERNELS[node.op_type])
        return None if levels is None or scales is None else scales * levels.astype(np.float32)
    if node.op_type == "MatMulNBits":
        blocks = blocks_of(graph, node)
        return None if blocks is None else blocks.restored()
    if node.op_type == "GatherBlockQuantized":
        return _table_rows(graph, node)
    if node.op_type == "QLinearConv":
        levels, scales, zero_points = (graph.constant(name) for name in node.input[3:6])
        if levels is None or scales is None or zero_points is None:
            return None
        channels = (-1, *[1] * (levels.ndim - 1))
        return dequantize(levels, scales.reshape(channels), zero_points.reshape(channels))
    position = {"MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1, "Gather": 0}.get(node.op_type)
    if position is None:
        return None
    weight = restored_constant(graph, node.input[position])
    transposed = node.op_type == "Gemm" and any(item.name == "transB" and item.i for item in node.attribute)
    return weight.T if weight is not None and transposed else weight


def restored_constant(graph: Graph, name: str) -> Float | None:
    """A constant that DequantizeLinear, or Cast and Mul, make of integers."""
    node = graph.producers.get(name)
    if node is None:
        return None
    if node.op_type == "DequantizeLinear":
        levels, scales = graph.constant(node.input[0]), graph.constant(node.input[1])
        zero_point = graph.constant(node.input[2]) if len(node.input) > 2 else None
        if levels is None or scales is None:
            return None
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1) % max(levels.ndim, 1)
        block = next((item.i for item in node.attribute if item.name == "block_size"), 0)
        if block:
            places = np.arange(levels.shape[axis]) // block
            zeros = np.zeros_like(scales) if zero_point is None else zero_point.astype(np.float32)
            return dequantize(levels, scales.take(places, axis), zeros.take(places, axis))
        shape = [-1 if scales.size > 1 and index == axis else 1 for index in range(levels.ndim)]
        zeros = np.zeros_like(scales, levels.dtype) if zero_point is None else zero_point
        return dequantize(levels, scales.reshape(shape), zeros.reshape(shape))
    if node.op_type == "Mul":
        cast = graph.producers.get(node.input[0])
        levels = graph.constant(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
        scales = graph.constant(node.input[1])
        if levels is not None and scales is not None and levels.dtype in (np.int8, np.uint8):
            return scales * levels.astype(np.float32)
    return None


def _table_rows(graph: Graph, node: onnx.NodeProto) -> Float | None:
    """The table of :func:`vlm_edge.numerics.quant_weights.compress_tables`: blocks of columns, zero point 128."""
    levels, scales = graph.constant(node.input[0]), graph.constant(node.input[2])
    block = next((item.i for item in node.attribute if item.name == "block_size"), 0)
    if levels is None or scales is None or not block:
        return None
    columns = np.repeat(scales, block, axis=1)[:, : levels.shape[1]]
    return columns * (levels.astype(np.float32) - 128)


def _output_levels(graph: Graph, node: onnx.NodeProto) -> OutputLevels | None:
    """What a QLinearConv writes (ONNX: ``y_scale`` and ``y_zero_point`` are its inputs 6 and 7)."""
    if node.op_type != "QLinearConv":
        return None
    scale, zero_point = (graph.constant(name) for name in node.input[6:8])
    if scale is None or zero_point is None or scale.size != 1:
        return None
    return OutputLevels(node.output[0], scale.reshape(()), zero_point.reshape(()))


def _input_quantizer(graph: Graph, name: str, convolutions: Mapping[str, str]) -> InputQuantizer | None:
    """The quantizer that a layer's input comes from, through operators that only move elements.

    Args:
        convolutions: name of a convolution -> its output in the float graph.
    """
    node = graph.producers.get(name)
    while node is not None and (node.op_type == "DequantizeLinear" or node.op_type in SHAPE_OPERATORS):
        node = graph.producers.get(node.input[0])
    levels = None if node is None else _output_levels(graph, node)
    if node is not None and levels is not None and node.name in convolutions:
        return InputQuantizer(convolutions[node.name], levels.scale, levels.zero_point, in_float_graph=True)
    if node is None or node.op_type != "QuantizeLinear":
        return None
    scale = graph.constant(node.input[1])
    zero_point = graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros(1, np.uint8)
    if scale is None or zero_point is None or scale.size != 1:
        return None
    return InputQuantizer(node.input[0], scale.reshape(()), zero_point.reshape(()))
