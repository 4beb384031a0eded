"""Place Q/DQ pairs around linear layers and convolutions, and give pairs their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vlm_edge.graphs.edit import Editor, constant, done, name_of_input, optional_input, tensor_of
from vlm_edge.graphs.match import find_convolutions, find_linears
from vlm_edge.quantizers.affine import quantize_weight
from vlm_edge.quantizers.ranges import Range

_UNCALIBRATED = "vlm_edge.uncalibrated"
"""Marks, for as long as a graph is in memory, the quantizers whose parameters are to be set."""


@dataclass
class PlaceLinears(ir.passes.InPlacePass):
    """A pair before every linear layer's data, and its weight as int8 with a scale for each output channel.

    Ranges are set by :class:`SetRanges`.

    Args:
        weight_bits: as in :func:`vlm_edge.quantizers.affine.quantize_weight`.
        left_out: names of nodes that stay float.
    """

    weight_bits: int
    left_out: frozenset[str] = frozenset()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        placed: dict[ir.Value, ir.Value] = {}
        for linear in find_linears(model.graph):
            node, data, weight = linear.node, linear.data, linear.weight
            tensor = tensor_of(weight)
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or node.name in self.left_out:
                continue
            if data not in placed:
                placed[data] = place_pair(editor, node, data)
            if weight not in placed:
                axis = 0 if linear.transposed else 1
                placed[weight] = _restored_weight(editor, node, weight, axis, self.weight_bits)
            node.replace_input_with(0, placed[data])
            node.replace_input_with(1, placed[weight])
        return done(model)


@dataclass
class PlaceConvolutions(ir.passes.InPlacePass):
    """A pair before every convolution of :func:`find_convolutions`, and its weight as int8 by channel.

    With ``outputs`` there is a pair after it too: onnxruntime's QLinearConv has no float result. One that reads or
    writes what is quantized already is left alone. Ranges are set by :class:`SetRanges`.

    Args:
        weight_bits: as in :func:`vlm_edge.quantizers.affine.quantize_weight`.
        left_out: names of nodes that stay float.
    """

    weight_bits: int
    outputs: bool
    left_out: frozenset[str] = frozenset()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        others = {node.inputs[0] for node in model.graph if node.op_type == "QuantizeLinear"}
        convolutions = [
            node
            for node in find_convolutions(model.graph)
            if node.name not in self.left_out and not others.intersection((node.inputs[0], node.outputs[0]))
        ]
        placed: dict[ir.Value, ir.Value] = {}
        for node in convolutions:
            data, weight = node.inputs[0], node.inputs[1]
            assert data is not None
            assert weight is not None
            if self.outputs:
                _pair_behind(editor, node)
            if data not in placed and not _is_pair(data):
                placed[data] = place_pair(editor, node, data)
            if weight not in placed:
                placed[weight] = _restored_weight(editor, node, weight, 0, self.weight_bits)
            node.replace_input_with(0, placed.get(data, data))
            node.replace_input_with(1, placed[weight])
        return done(model)


def _is_pair(value: ir.Value) -> bool:
    """Whether an earlier convolution has put its pair there."""
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _pair_behind(editor: Editor, node: ir.Node) -> None:
    output = node.outputs[0]
    readers = output.uses()
    following = ir.node("Identity", [output])  # a place behind the node
    editor.graph.insert_after(node, following)
    restored = place_pair(editor, following, output)
    editor.graph.remove(following, safe=True)
    for reader, position in readers:  # those from before
        reader.replace_input_with(position, restored)


def place_pair(editor: Editor, before: ir.Node, value: ir.Value) -> ir.Value:
    """QuantizeLinear and DequantizeLinear of ``value``, whose parameters are to be set; returns their output."""
    stem = value.name
    scale = editor.constant(f"{stem}_scale", np.ones((), np.float32))
    zero_point = editor.constant(f"{stem}_zero_point", np.zeros((), np.int8))
    levels = editor.op(
        before, "QuantizeLinear", [value, scale, zero_point], f"{stem}_quantized", name=f"{stem}_quantize"
    )
    levels.meta[_UNCALIBRATED] = True
    inputs = [levels, scale, zero_point]
    return editor.op(before, "DequantizeLinear", inputs, f"{stem}_dequantized", name=f"{stem}_restore")


def _restored_weight(editor: Editor, before: ir.Node, weight: ir.Value, axis: int, bits: int) -> ir.Value:
    """The float32 weight of int8 values with a scale for each channel along ``axis``."""
    numbers, name = constant(weight), weight.name
    assert numbers is not None
    levels, scales = quantize_weight(numbers, axis, bits=bits)
    inputs = [
        editor.constant(f"{name}_int8", levels),
        editor.constant(f"{name}_scale", scales),
        editor.constant(f"{name}_zero_point", np.zeros(scales.shape, np.int8)),
    ]
    return editor.op(before, "DequantizeLinear", inputs, f"{name}_dequantized", name=f"{name}_restore", axis=axis)


def quantized_tensors(model: ir.Model) -> list[list[str]]:
    """The float tensors that are quantized by tensor, those that share one quantizer's range together.

    A calibration tool gives quantizers that must agree (the parts of a Concat, say) the same scale and zero point; so
    those that have the same are taken to belong together.
    """
    groups: dict[Any, list[str]] = {}
    for node in model.graph:
        scale = constant(node.inputs[1]) if node.op_type == "QuantizeLinear" else None
        if scale is None or scale.size != 1 or tensor_of(node.inputs[0]) is not None:
            continue
        named = optional_input(node, 2)
        zero = np.zeros(1, np.uint8) if named is None else constant(named)
        tensor = name_of_input(node)
        key = (float(scale.item()), int(zero.item())) if zero is not None else node.name
        own = groups.setdefault(tensor if node.outputs[0].meta.get(_UNCALIBRATED) else key, [])
        if tensor not in own:
            own.append(tensor)
    return list(groups.values())


@dataclass
class SetRanges(ir.passes.InPlacePass):
    """Every quantizer of a tensor in ``ranges`` in its signed form with that range.

    Args:
        symmetric: zero point 0 and 127 for the larger side, else 256 steps over the range.
    """

    ranges: Mapping[str, Range]
    symmetric: bool

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        for node in list(model.graph):
            if node.op_type != "QuantizeLinear" or name_of_input(node) not in self.ranges:
                continue
            scale, zero_point = parameters_of(self.ranges[name_of_input(node)], symmetric=self.symmetric)
            stem = node.outputs[0].name
            new = (
                editor.constant(f"{stem}_range_scale", np.array(scale, np.float32)),
                editor.constant(f"{stem}_range_zero_point", np.array(zero_point, np.int8)),
            )
            for user in (node, *node.outputs[0].consumers()):
                if user is node or user.op_type == "DequantizeLinear":
                    set_parameters(user, *new)
        return done(model)


def set_parameters(node: ir.Node, scale: ir.Value, zero_point: ir.Value) -> None:
    """Give a QuantizeLinear or DequantizeLinear these inputs; what it writes may have another type from now on."""
    node.resize_inputs(3)
    node.replace_input_with(1, scale)
    node.replace_input_with(2, zero_point)
    node.attributes.pop("output_dtype", None)
    if node.op_type == "QuantizeLinear":
        node.outputs[0].type = None


def parameters_of(limits: Range, *, symmetric: bool) -> tuple[float, int]:
    """Scale and zero point of signed 8-bit values for a range that holds 0 (Jacob et al. 2018, section 2.1)."""
    low, high = limits
    scale = max(-low, high) / 127 if symmetric else (high - low) / 255
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    return scale, 0 if symmetric else int(np.clip(np.rint(-128 - low / scale), -128, 127))
