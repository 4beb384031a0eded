"""Change integer layers of an onnxruntime graph into the other forms that this engine may run faster.

``static``: integer products of data whose scale is known. ``dynamic`` (linear layers): the scale is taken from the data
of each run. ``blocks`` (linear layers): weight and data have a scale for each block of input channels. ``float``: float
products with the same int8 weight, which onnxruntime turns back when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from vlm_edge.graphs.edit import Editor, attribute, constant, done, maker, optional_input, reroute, shape_of, tensor_of
from vlm_edge.graphs.ops import MICROSOFT
from vlm_edge.graphs.passes.compress_weights import cast_weight
from vlm_edge.graphs.passes.lower_linears import blocks_of

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

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.weight[0 if self.op_type == "QLinearConv" else 1]


def integer_layers(model: ir.Model) -> list[IntegerLayer]:
    """Every layer that has other forms, in the graph's order: a convolution, or a linear layer whose data is quantized
    just before it. Weights of 4 bits have none: their float form takes 8 bits on disk."""
    found = []
    for node in model.graph:
        if node.op_type not in _FORMS:
            continue
        name, output = str(node.name), str(node.outputs[0].name)
        if node.op_type == "MatMulNBits":
            if attribute(node, "bits", 4) == 8 and tensor_of(node.inputs[1]) is not None:
                found.append(IntegerLayer(name, node.op_type, (attribute(node, "K"), attribute(node, "N")), output))
            continue
        levels = tensor_of(node.inputs[3 if node.op_type == "QLinearConv" else 1])
        if node.op_type == "MatMulIntegerToFloat" and maker(node.inputs[0], "QuantizeLinear") is None:
            continue
        if levels is not None and levels.dtype == ir.DataType.INT8:
            found.append(IntegerLayer(name, node.op_type, shape_of(levels), output))
    return found


class ChangeForms(ir.passes.InPlacePass):
    """Write the named layers in other forms.

    Args:
        forms: node name -> one of the forms of that layer of :func:`integer_layers`; each has a name of its own.
    """

    def __init__(self, forms: Mapping[str, Form]) -> None:
        self._forms = forms

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        for node in list(model.graph):
            form = self._forms.get(str(node.name), "static") if node.op_type in _FORMS else "static"
            if form in ("static", _FORMS.get(node.op_type, ("static",))[0]):
                continue
            if node.op_type == "QLinearConv":
                _float_convolution(editor, node)
            elif node.op_type == "MatMulNBits":
                _product(editor, node, node.inputs[0], _restored_blocks(editor, node), optional_input(node, 5))
            elif form == "float":
                _float_linear(editor, node)
            else:
                inputs = [_before_rounding(node.inputs[0]), node.inputs[1], node.inputs[3], None]
                kind = "DynamicQuantizeMatMul"
                editor.replace(node, kind, [*inputs, optional_input(node, 6)], domain=MICROSOFT)
        return done(model)


class InFloat(ir.passes.InPlacePass):
    """Compute in float from the same integer weights, and without Q/DQ pairs of activations."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = {layer.node for layer in integer_layers(model)}
        names |= {str(node.name) for node in model.graph if node.op_type == "MatMulNBits"}
        ChangeForms(dict.fromkeys(names, "float"))(model)
        for node in list(model.graph):
            quantize = maker(node.inputs[0], "QuantizeLinear") if node.op_type == "DequantizeLinear" else None
            if quantize is not None and quantize.inputs[0] is not None:
                reroute(node.outputs[0], quantize.inputs[0])
        return done(model)


def _float_linear(editor: Editor, node: ir.Node) -> None:
    dynamic = node.op_type == "DynamicQuantizeMatMul"
    data = node.inputs[0] if dynamic else _before_rounding(node.inputs[0])
    weight = _weight(editor, node, 1, 2 if dynamic else 3, 1)
    _product(editor, node, data, weight, optional_input(node, 4 if dynamic else 6))


def _product(editor: Editor, node: ir.Node, data: ir.Value | None, weight: ir.Value, bias: ir.Value | None) -> None:
    if bias is None:
        editor.replace(node, "MatMul", [data, weight])
        return
    product = editor.op(node, "MatMul", [data, weight], f"{node.outputs[0].name}_product", name=str(node.name))
    editor.replace(node, "Add", [product, bias], name=f"{node.name}_bias")


def _restored_blocks(editor: Editor, node: ir.Node) -> ir.Value:
    """The weight made of uint8 values (blocks, block_size, out), without the rows that pad them."""
    blocks = blocks_of(node)
    assert blocks is not None
    stem = f"{node.name}_float_weight"
    value = editor.constant(f"{stem}_levels", np.ascontiguousarray(blocks.levels.transpose(1, 2, 0)))
    begin = editor.constant(f"{stem}_begin", np.array([0]))
    steps: list[tuple[str, list[ir.Value], dict[str, Any]]] = [
        ("Cast", [], {"to": int(ir.DataType.FLOAT)}),
        ("Sub", [editor.constant(f"{stem}_middles", blocks.zero_points.T[:, None].astype(np.float32))], {}),
        ("Mul", [editor.constant(f"{stem}_scales", np.ascontiguousarray(blocks.scales.T[:, None]))], {}),
        ("Reshape", [editor.constant(f"{stem}_shape", np.array([-1, len(blocks.levels)], np.int64))], {}),
        ("Slice", [begin, editor.constant(f"{stem}_end", np.array([blocks.width])), begin], {}),
    ]
    for kind, inputs, settings in steps:
        name = f"{stem}_{kind.lower()}"
        value = editor.op(node, kind, [value, *inputs], name, name=name, **settings)
    return value


def _float_convolution(editor: Editor, node: ir.Node) -> None:
    """Conv, with the bias that the int32 steps stand for, and its quantized output for who still reads that."""
    stem = f"{node.name}_float"
    data_scale, scales, steps = (constant(optional_input(node, place)) for place in (1, 4, 8))
    assert data_scale is not None
    assert scales is not None
    source = maker(node.inputs[0], "QuantizeLinear")
    data = (
        source.inputs[0]
        if source is not None
        else editor.op(node, "DequantizeLinear", node.inputs[:3], f"{stem}_data", name=f"{stem}_data")
    )
    inputs = [data, _weight(editor, node, 3, 4, 0)]
    if steps is not None:
        bias = (steps * np.float64(data_scale.item()) * scales).astype(np.float32)
        inputs.append(editor.constant(f"{stem}_bias", bias))
    result = editor.op(node, "Conv", inputs, f"{node.outputs[0].name}_float", name=str(node.name))
    convolution = result.producer()
    assert convolution is not None
    convolution.attributes.update(node.attributes)
    for reader in node.outputs[0].consumers():
        if reader.op_type == "DequantizeLinear":
            reroute(reader.outputs[0], result)
    editor.replace(node, "QuantizeLinear", [result, *node.inputs[6:8]], name=f"{stem}_quantize")


def _weight(editor: Editor, node: ir.Node, levels: int, scales: int, axis: int) -> ir.Value:
    """The float32 tensor of int8 values with a scale for each channel, both inputs of ``node``."""
    values, steps = constant(node.inputs[levels]), constant(node.inputs[scales])
    assert values is not None
    assert steps is not None
    channels = np.broadcast_to(steps.reshape(-1), values.shape[axis : axis + 1])
    return cast_weight(editor, node, f"{node.name}_float_weight", values, channels, axis)


def _before_rounding(value: ir.Value | None) -> ir.Value | None:
    """The float tensor that QuantizeLinear makes ``value`` of."""
    quantize = maker(value)
    assert quantize is not None
    return quantize.inputs[0]
