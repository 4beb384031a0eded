"""Write a symmetric Q/DQ graph in the form of TensorRT's explicit quantization.

The pages named here are of NVIDIA's TensorRT documentation, "Working with Quantized Types".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vlm_edge.graphs.edit import Editor, attribute, done, maker, remove_unused, tensor_of
from vlm_edge.graphs.layers import dequantized_constant
from vlm_edge.graphs.match import Quantizer, is_activation_pair, is_integer, quantizer_above
from vlm_edge.graphs.ops import SHAPE_OPERATORS, weight_axis

SCORE_OPERATORS = SHAPE_OPERATORS | {"Add", "Mul", "Div", "Where", "Cast", "Clip"}
"""Operators between attention's first product and its Softmax: the scale and the mask."""


class TensorRtForm(ir.passes.InPlacePass):
    """Keep pairs directly before integer operators alone, and all other weights in floating point.

    A weighted operator of which one factor alone is quantized gains nothing from its rounding ("Q/DQ Layer-Placement
    Recommendations": quantize all inputs of weighted operations), so its pair is taken out. So are the pairs of an
    attention of which one product alone could run in integers: it would not be fused ("Fused Attention"). Constants
    that no integer operator reads are floating point again: TensorRT knows weight-only quantization for 4 bits alone
    ("Quantization Granularities"), and would dequantize 8-bit weights in every run. The skip branch of a residual
    addition whose sum is quantized keeps its pair ("Quantize the residual input in skip-connections"), and axes count
    from the front.

    The graph's activations are signed with zero point 0, each QuantizeLinear followed by its DequantizeLinear.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        while _place_pairs_directly(model):
            pass  # a pair that is gone may have been another one's reason
        integer = integer_nodes(model.graph)
        editor = Editor(model.graph)
        floating: dict[ir.Value, ir.Value] = {}
        for node in model.graph:
            for index, value in enumerate(node.inputs):
                restore = maker(value, "DequantizeLinear")
                if restore is None or value is None or attribute(restore, "block_size", 0):
                    continue
                if node in integer and index < 2:
                    continue
                if value not in floating:
                    numbers = dequantized_constant(restore)
                    if numbers is None:
                        continue
                    floating[value] = editor.constant(f"{value.name}_float", numbers)
                node.replace_input_with(index, floating[value])
        for node in model.graph:
            values = tensor_of(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
            axis = attribute(node, "axis", 1)
            if values is not None and axis < 0:
                node.attributes.add(ir.AttrInt64("axis", axis + len(values.shape)))
        return done(model)


def integer_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The heavy operators that run in integers: both factors quantized; attention, both products.

    Quantizers that TensorRT has no form for (a weight with zero points, or scales along another axis than its output
    channels) don't count.
    """
    found = {node for node in graph if is_integer(node) and _fits(node)}
    for products in attention_products(graph):
        if not found.issuperset(products):
            found.difference_update(products)
    return found


def _fits(node: ir.Node) -> bool:
    for index, value in enumerate(node.inputs[:2]):
        quantizer = quantizer_above(value)
        if quantizer is None or quantizer.zero_point.dtype != np.int8 or quantizer.zero_point.any():
            return False
        if quantizer.scale.size > 1:
            restored = maker(value)
            values = tensor_of(restored.inputs[0]) if restored is not None else None
            assert restored is not None
            assert values is not None
            rank = len(values.shape)
            if attribute(restored, "axis", 1) % rank != factor_axis(node, index, rank):
                return False
    return True


def factor_axis(node: ir.Node, index: int, rank: int) -> int:
    """The output channels' axis of a weighted operator's factor ``index``: K of KCRS, of Gemm and of MatMul."""
    if node.op_type == "Gemm":
        return int(index != bool(attribute(node, ("transA", "transB")[index], 0)))
    if node.op_type == "MatMul":
        return rank - 1 if index else rank - 2
    axis = weight_axis(node.op_type)
    assert axis is not None
    return axis


def attention_products(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """(queries times keys, weights times values) of every attention that is spelled out: around each Softmax."""
    for node in graph:
        scores = _scores_above(node.inputs[0]) if node.op_type == "Softmax" else None
        if scores is not None:
            for context in _products_below(node.outputs[0]):
                yield scores, context


def _scores_above(value: ir.Value | None) -> ir.Node | None:
    """The product of two computed tensors that ``value`` is made of, below scale and mask."""
    node = maker(value)
    if node is None or node.op_type not in SCORE_OPERATORS | {"MatMul"}:
        return None
    if node.op_type == "MatMul":
        return node if all(is_computed(factor) for factor in node.inputs) else None
    found = (_scores_above(factor) for factor in node.inputs)
    return next((product for product in found if product is not None), None)


def _products_below(value: ir.Value) -> Iterator[ir.Node]:
    for reader in value.consumers():
        if reader.op_type == "MatMul":
            yield reader
        elif reader.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast") or reader.op_type in SHAPE_OPERATORS:
            yield from _products_below(reader.outputs[0])


def is_computed(value: ir.Value | None) -> bool:
    """Whether it is neither a constant nor dequantized from one."""
    restore = maker(value, "DequantizeLinear")
    return tensor_of(value if restore is None else restore.inputs[0]) is None


def skip_branch(node: ir.Node, integer: set[ir.Node]) -> int | None:
    """The input of a residual addition that is the skip branch; None for other nodes, or where the sum isn't quantized.

    The other input comes from an integer operator (and the addition of its bias), and whoever reads the sum quantizes
    it.
    """
    if node.op_type != "Add" or not is_quantized(node.outputs[0]):
        return None
    if not all(is_computed(value) for value in node.inputs):
        return None
    weighted = [from_integer(value, integer) for value in node.inputs]
    return None if not any(weighted) else 1 if all(weighted) else weighted.index(False)


def is_quantized(value: ir.Value) -> bool:
    """Whether all who read ``value`` quantize it, directly or below operators that only move elements."""
    readers = value.consumers()
    if value.is_graph_output() or not readers:
        return False
    return all(
        reader.op_type == "QuantizeLinear"
        or (reader.op_type in SHAPE_OPERATORS and all(is_quantized(output) for output in reader.outputs))
        for reader in readers
    )


def from_integer(value: ir.Value | None, integer: set[ir.Node]) -> bool:
    """Whether ``value`` is what a node of ``integer`` gives, directly or behind its bias or a pair."""
    node = maker(value)
    while node is not None and node.op_type in ("Add", "QuantizeLinear", "DequantizeLinear"):
        computed = [factor for factor in node.inputs[:2] if is_computed(factor)]
        if node.op_type == "Add" and len(computed) != 1:
            return False
        node = maker(computed[0] if node.op_type == "Add" else node.inputs[0])
    return node is not None and node in integer


def _place_pairs_directly(model: ir.Model) -> bool:
    """Give integer operators and skip branches a pair of their own, and all others the unrounded values.

    Returns:
        Whether anything changed.
    """
    graph = model.graph
    integer = integer_nodes(graph)
    wanted = {(node, index) for node in integer for index in (0, 1)}
    skips = ((node, skip_branch(node, integer)) for node in graph)
    wanted |= {(node, index) for node, index in skips if index is not None}
    quantizers = {place: quantizer_above(place[0].inputs[place[1]]) for place in wanted}
    origins = _origins(graph)
    editor, placed, changed = Editor(graph), dict[ir.Value, ir.Value](), False
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            quantizer = quantizers.get((node, index))
            new = value if value is None else origins.get(value, value)
            if quantizer is not None and value is not None:
                new = value
                if quantizer.at is not value:
                    if value not in placed:
                        placed[value] = _pair(editor, node, value, quantizer)
                    new = placed[value]
            if new is not value:
                node.replace_input_with(index, new)
                changed = True
    for value, origin in origins.items():
        restore = maker(value)
        if value.is_graph_output() and restore is not None:
            editor.replace(restore, "Identity", [origin])
            changed = True
    remove_unused(model)
    return changed


def _pair(editor: Editor, before: ir.Node, value: ir.Value, quantizer: Quantizer) -> ir.Value:
    """``value`` behind QuantizeLinear and DequantizeLinear, with one scale and zero point for both."""
    stem = f"{value.name}_dequantized"
    scale = editor.constant(f"{value.name}_scale", quantizer.scale)
    zero_point = editor.constant(f"{value.name}_zero_point", quantizer.zero_point)
    integers = editor.op(
        before, "QuantizeLinear", [value, scale, zero_point], f"{stem}_levels", name=f"{stem}_quantize"
    )
    return editor.op(before, "DequantizeLinear", [integers, scale, zero_point], stem, name=f"{stem}_restore")


def _origins(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """{output of an activation pair: the tensor that it rounds}. Pairs with a scale for each channel (NNCF's before
    depthwise convolutions) count too: TensorRT computes in floating point behind them."""
    origins: dict[ir.Value, ir.Value] = {}
    for node in graph:
        if not is_activation_pair(node):
            continue
        quantize = maker(node.inputs[0])
        source = quantize.inputs[0] if quantize is not None else None
        if source is not None:
            origins[node.outputs[0]] = origins.get(source, source)
    return origins
