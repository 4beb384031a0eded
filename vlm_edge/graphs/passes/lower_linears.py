"""Write linear layers as onnxruntime's integer kernels: from Q/DQ pairs, dynamic, or with weights in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.edit import Editor, attribute, constant, done, maker, optional_input, tensor_of
from vlm_edge.graphs.match import Linear, find_linears
from vlm_edge.graphs.ops import INTEGER_PRODUCTS, MICROSOFT
from vlm_edge.quantizers.affine import quantize_weight
from vlm_edge.quantizers.blocks import Blocks, fitting_block, quantize_blocks, unpacked_blocks

SMALLEST = 1024
"""Weights with fewer elements stay float32: two more nodes would take what their bytes save."""


class LowerLinears(ir.passes.InPlacePass):
    """Q/DQ linear layers become QuantizeLinear and com.microsoft.MatMulIntegerToFloat, which runs in integers.

    The fusion that onnxruntime does at load time is written out, since another one may come first (MatMul and Add
    become a Gemm, which the Q/DQ fusion leaves alone): u8 or s8 data, s8 weight (in, out), float result, bias in
    float32. Linear layers whose data or weight has no quantizer by tensor (weight: by column) stay as they are.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        weights: dict[tuple[ir.Node, bool], tuple[ir.Value, ir.Value]] = {}
        for linear in find_linears(model.graph):
            data, weight = maker(linear.data, "DequantizeLinear"), maker(linear.weight, "DequantizeLinear")
            if data is None or weight is None:
                continue
            scale, key = tensor_of(data.inputs[1]), (weight, linear.transposed)
            if scale is None or scale.size != 1:
                continue
            if key not in weights:
                levels, scales = _symmetric_weight(weight, linear.transposed)
                if levels is None:
                    continue
                stem = linear.weight.name
                weights[key] = editor.constant(f"{stem}_levels", levels), editor.constant(f"{stem}_scales", scales)
            levels_of, scales_of = weights[key]
            zero_point = optional_input(data, 2)
            inputs = [data.inputs[0], levels_of, data.inputs[1], scales_of, zero_point, None]
            _replace(editor, linear, "MatMulIntegerToFloat", inputs)
        return done(model)


def _symmetric_weight(node: ir.Node, transposed: bool) -> tuple[NDArray[np.int8] | None, NDArray[np.float32]]:
    """Values (in, out) and scales (out,) of a DequantizeLinear, or None where it isn't symmetric int8 by column."""
    levels, scales, named = constant(node.inputs[0]), constant(node.inputs[1]), optional_input(node, 2)
    zero_point = np.zeros(1) if named is None else constant(named)
    columns = 0 if transposed else 1
    if (
        levels is None
        or scales is None
        or levels.dtype != np.int8
        or (zero_point is not None and zero_point.any())
        or (scales.size > 1 and attribute(node, "axis", 1) % 2 != columns)
    ):
        return None, np.empty(0, np.float32)
    scales = np.broadcast_to(scales.reshape(-1), (levels.shape[columns],)).astype(np.float32)
    return np.ascontiguousarray(levels.T if transposed else levels), scales


@dataclass
class DynamicLinears(ir.passes.InPlacePass):
    """Float linear layers become com.microsoft.DynamicQuantizeMatMul: s8 weights, and u8 data over its range in a run.

    Needs no calibration; the range is taken over all rows of a run, so a row's result depends on the others'. The nodes
    named in ``left_out`` stay as they are.
    """

    weight_bits: int = 8
    left_out: frozenset[str] = frozenset()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        weights: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]] = {}
        for linear in find_linears(model.graph):
            if linear.node.name in self.left_out:
                continue
            key, stem = (linear.weight, linear.transposed), linear.weight.name
            if key not in weights:
                weight = linear.weight_by_input()
                if weight is None:
                    continue
                levels, scales = quantize_weight(weight, axis=1, bits=self.weight_bits)
                weights[key] = editor.constant(f"{stem}_levels", levels), editor.constant(f"{stem}_scales", scales)
            _replace(editor, linear, "DynamicQuantizeMatMul", [linear.data, *weights[key], None])
        return done(model)


@dataclass
class BlockLinears(ir.passes.InPlacePass):
    """Float linear layers become com.microsoft.MatMulNBits, with weights of 4 or 8 bits in blocks.

    A block has ``largest_block`` input channels, or half or a quarter as many (at least 32) where that leaves fewer
    to pad. onnxruntime and OpenVINO read it. Weights below :data:`SMALLEST` elements are left alone, and those of the
    nodes named in ``left_out``. Layers that share a weight, and read it in the same direction, share its blocks.
    """

    bits: int
    largest_block: int
    left_out: frozenset[str] = frozenset()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        weights: dict[tuple[ir.Value, bool], list[ir.Value]] = {}
        for linear in find_linears(model.graph):
            tensor = tensor_of(linear.weight)
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < SMALLEST:
                continue
            if linear.node.name in self.left_out:
                continue
            key, shape = (linear.weight, linear.transposed), tensor.shape.numpy()
            width, rows = shape[::-1] if linear.transposed else shape
            block_size = fitting_block(width, self.largest_block)
            if key not in weights:
                weight = linear.weight_by_input()
                assert weight is not None
                blocks = quantize_blocks(weight, self.bits, block_size)
                levels, zero_points = blocks.packed()
                stem = f"{linear.weight.name}_blocks_of_{'rows' if linear.transposed else 'columns'}"
                parts = {"levels": levels, "scales": blocks.scales, "zero_points": zero_points}
                weights[key] = [editor.constant(f"{stem}_{part}", array) for part, array in parts.items()]
            size = {"K": width, "N": rows, "bits": self.bits, "block_size": block_size}
            inputs = [linear.data, *weights[key], None]
            _replace(editor, linear, "MatMulNBits", inputs, **size, accuracy_level=INTEGER_PRODUCTS)
        return done(model)


def blocks_of(node: ir.Node) -> Blocks | None:
    """The weight of a MatMulNBits, or None where it is computed."""
    levels, scales, named = constant(node.inputs[1]), constant(node.inputs[2]), optional_input(node, 3)
    zero_points = constant(named)
    if levels is None or scales is None or (named is not None and zero_points is None):
        return None
    sizes = {"bits": attribute(node, "bits", 4), "block_size": attribute(node, "block_size")}
    return unpacked_blocks(levels, scales, zero_points, **sizes, width=attribute(node, "K"))


def _replace(
    editor: Editor, linear: Linear, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any
) -> None:
    """Put the kernel in the place of the layer's last node (the Add, if any), and take out its first."""
    bias = [] if linear.bias is None else [editor.constant(f"{linear.output.name}_bias", linear.bias)]
    editor.replace(linear.last, op_type, [*inputs, *bias], domain=MICROSOFT, **attributes)
    if linear.last is not linear.node:
        editor.graph.remove(linear.node, safe=True)
