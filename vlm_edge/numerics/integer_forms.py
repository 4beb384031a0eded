"""Integer layers of an onnxruntime graph, and each in the other forms that this engine may run faster.

``static``: integer products of data whose scale is known. ``dynamic`` (linear layers): the scale is taken from the data
of each run. ``blocks`` (linear layers): weight and data have a scale for each block of input channels. ``float``: float
products with the same int8 weight, which onnxruntime turns back when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vlm_edge.numerics.qdq_graph import MICROSOFT, Graph, attribute, edited
from vlm_edge.numerics.qdq_lower import blocks_of
from vlm_edge.numerics.quant_weights import cast_weight

Form = Literal["static", "dynamic", "blocks", "float"]

_FORMS: dict[str, tuple[Form, ...]] = {
    "MatMulIntegerToFloat": ("static", "dynamic", "float"),
    "DynamicQuantizeMatMul": ("dynamic", "float"),
    "QLinearConv": ("static", "float"),
    "MatMulNBits": ("blocks", "float"),
}
"""Operators, and their forms: the first is the one that they are."""


@dataclass(frozen=True)
class IntegerLayer:
    """``node`` names it in the graph; ``output`` is a tensor of the shape that it makes, ``weight`` the shape of its
    own."""

    node: str
    op_type: str
    weight: tuple[int, ...]
    output: str

    @property
    def forms(self) -> tuple[Form, ...]:
        return _FORMS[self.op_type]


def integer_layers(model: onnx.ModelProto) -> list[IntegerLayer]:
    """Every layer that has other forms, in the graph's order: a convolution, or a linear layer whose data is quantized
    just before it. Weights of 4 bits have none: their float form takes 8 bits on disk."""
    graph = Graph(model)
    found = []
    for node in graph.nodes:
        if node.op_type not in _FORMS:
            continue
        if node.op_type == "MatMulNBits":
            if attribute(node, "bits", 4) == 8 and graph.constant(node.input[1]) is not None:
                shape = attribute(node, "K"), attribute(node, "N")
                found.append(IntegerLayer(node.name, node.op_type, shape, node.output[0]))
            continue
        levels = graph.constant(node.input[3 if node.op_type == "QLinearConv" else 1])
        if node.op_type == "MatMulIntegerToFloat":
            data = graph.producers.get(node.input[0])
            if data is None or data.op_type != "QuantizeLinear":
                continue
        if levels is not None and levels.dtype == np.int8:
            found.append(IntegerLayer(node.name, node.op_type, levels.shape, node.output[0]))
    return found


def with_forms(model: onnx.ModelProto, forms: Mapping[str, Form]) -> onnx.ModelProto:
    """A copy with the named layers in other forms.

    Args:
        model: layers of :func:`integer_layers`, each with a name of its own.
        forms: node name -> one of that layer's forms.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    changed = {
        node.output[0]: node
        for node in graph.nodes
        if node.op_type in _FORMS and forms.get(node.name, "static") not in ("static", _FORMS[node.op_type][0])
    }
    for node in changed.values():
        if node.op_type == "QLinearConv":
            new = _float_convolution(graph, node, changed.keys(), constants)
        elif node.op_type == "MatMulNBits":
            new = _float_blocks(graph, node, constants)
        elif forms[node.name] == "float":
            new = _float_linear(graph, node, constants)
        else:
            new = [_dynamic_linear(graph, node)]
        replacements[graph.position(node)] = new
    unrounded = {
        reader.output[0]: f"{levels}_float"
        for levels, node in changed.items()
        for reader in graph.consumers[levels]
        if node.op_type == "QLinearConv" and reader.op_type == "DequantizeLinear"
    }
    return edited(model, replacements, constants, renamed=unrounded)


def in_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float from the same integer weights, and whose activations have no Q/DQ pairs."""
    names = {layer.node for layer in integer_layers(model)}
    names |= {node.name for node in model.graph.node if node.op_type == "MatMulNBits"}
    result = with_forms(model, dict.fromkeys(names, "float"))
    graph = Graph(result)
    origins: dict[str, str] = {}
    for node in graph.nodes:
        quantize = graph.producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantize is not None and quantize.op_type == "QuantizeLinear" and node.output[0] not in graph.outputs:
            origins[node.output[0]] = origins.get(quantize.input[0], quantize.input[0])
    return edited(result, {}, {}, renamed=origins)


def _float_linear(graph: Graph, node: onnx.NodeProto, constants: dict[str, NDArray[Any]]) -> list[onnx.NodeProto]:
    dynamic = node.op_type == "DynamicQuantizeMatMul"
    data = node.input[0] if dynamic else _float_source(graph, node.input[0])
    weight, scales, bias = node.input[1], node.input[2 if dynamic else 3], _optional(node, 4 if dynamic else 6)
    stem = f"{node.name}_float_weight"
    return [*_weight(graph, stem, weight, scales, 1, constants), *_product(node, data, stem, bias)]


def _product(node: onnx.NodeProto, data: str, weight: str, bias: str) -> list[onnx.NodeProto]:
    product = f"{node.output[0]}_product" if bias else node.output[0]
    nodes = [helper.make_node("MatMul", [data, weight], [product], name=node.name)]
    if bias:
        nodes.append(helper.make_node("Add", [product, bias], [node.output[0]], name=f"{node.name}_bias"))
    return nodes


def _float_blocks(graph: Graph, node: onnx.NodeProto, constants: dict[str, NDArray[Any]]) -> list[onnx.NodeProto]:
    """MatMul by a weight that is made of uint8 levels (blocks, block_size, out), without the rows that pad them."""
    blocks = blocks_of(graph, node)
    assert blocks is not None
    stem = f"{node.name}_float_weight"
    names = {part: f"{stem}_{part}" for part in ("levels", "middles", "scales", "shape", "begin", "end")}
    constants[names["levels"]] = np.ascontiguousarray(blocks.levels.transpose(1, 2, 0))
    constants[names["middles"]] = blocks.zero_points.T[:, None].astype(np.float32)
    constants[names["scales"]] = np.ascontiguousarray(blocks.scales.T[:, None])
    constants[names["shape"]] = np.array([-1, len(blocks.levels)], np.int64)
    constants[names["begin"]], constants[names["end"]] = np.array([0]), np.array([blocks.width])
    steps = [
        ("Cast", [names["levels"]], {"to": TensorProto.FLOAT}),
        ("Sub", [f"{stem}_cast", names["middles"]], {}),
        ("Mul", [f"{stem}_sub", names["scales"]], {}),
        ("Reshape", [f"{stem}_mul", names["shape"]], {}),
        ("Slice", [f"{stem}_reshape", names["begin"], names["end"], names["begin"]], {}),
    ]
    nodes = [
        helper.make_node(kind, inputs, [f"{stem}_{kind.lower()}"], name=f"{stem}_{kind.lower()}", **settings)
        for kind, inputs, settings in steps
    ]
    return [*nodes, *_product(node, node.input[0], f"{stem}_slice", _optional(node, 5))]


def _dynamic_linear(graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto:
    inputs = [_float_source(graph, node.input[0]), node.input[1], node.input[3], "", _optional(node, 6)]
    while not inputs[-1]:
        inputs = inputs[:-1]
    return helper.make_node("DynamicQuantizeMatMul", inputs, node.output, name=node.name, domain=MICROSOFT)


def _float_convolution(
    graph: Graph, node: onnx.NodeProto, changed: Container[str], constants: dict[str, NDArray[Any]]
) -> list[onnx.NodeProto]:
    """Conv, with the bias that the int32 steps stand for, and its levels for who still reads those.

    Args:
        changed: levels that are made of a float tensor from now on, as this node's are.
    """
    stem, levels = f"{node.name}_float", node.output[0]
    data_scale, scales = graph.constant(node.input[1]), graph.constant(node.input[4])
    steps = graph.constant(node.input[8]) if len(node.input) > 8 else None
    assert data_scale is not None
    assert scales is not None
    nodes, source, data = [], graph.producers.get(node.input[0]), f"{stem}_data"
    if source is not None and source.op_type == "QuantizeLinear":
        data = source.input[0]
    elif node.input[0] in changed:
        data = f"{node.input[0]}_float"
    else:
        nodes.append(helper.make_node("DequantizeLinear", node.input[:3], [data], name=data))
    inputs = [data, f"{stem}_weight"]
    if steps is not None:
        constants[f"{stem}_bias"] = (steps * np.float64(data_scale.item()) * scales).astype(np.float32)
        inputs.append(f"{stem}_bias")
    nodes += _weight(graph, inputs[1], node.input[3], node.input[4], 0, constants)
    convolution = helper.make_node("Conv", inputs, [f"{levels}_float"], name=node.name)
    convolution.attribute.extend(node.attribute)
    parameters = [f"{levels}_float", node.input[6], node.input[7]]
    return [*nodes, convolution, helper.make_node("QuantizeLinear", parameters, [levels], name=f"{stem}_quantize")]


def _weight(
    graph: Graph, stem: str, levels: str, scales: str, axis: int, constants: dict[str, NDArray[Any]]
) -> list[onnx.NodeProto]:
    """Nodes that make the float32 tensor ``stem`` from int8 levels and a scale for each channel."""
    values, steps = graph.constant(levels), graph.constant(scales)
    assert values is not None
    assert steps is not None
    constants[f"{stem}_levels"] = values
    steps = np.broadcast_to(steps.reshape(-1), values.shape[axis : axis + 1])
    return cast_weight(stem, steps, axis, values.ndim, constants)


def _float_source(graph: Graph, name: str) -> str:
    """The float tensor whose levels ``name`` holds."""
    return str(graph.producers[name].input[0])


def _optional(node: onnx.NodeProto, position: int) -> str:
    return node.input[position] if len(node.input) > position else ""
