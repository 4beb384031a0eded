"""Change activation quantizers of a Q/DQ graph: signed to unsigned or back, or around zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.edit import Editor, constant, done, optional_input, tensor_of
from vlm_edge.graphs.match import zero_point_of
from vlm_edge.graphs.ops import SHAPE_OPERATORS
from vlm_edge.graphs.passes.place_pairs import set_parameters

SHIFT = 128
"""Between the signed and the unsigned form of one 8-bit quantizer."""
Parameters = tuple[NDArray[Any], NDArray[Any]]
"""Scale and zero point."""
_EIGHT_BIT = (np.dtype(np.int8), np.dtype(np.uint8))


class _ChangeActivations(ir.passes.InPlacePass):
    """Give every activation pair the scale and the zero point that :meth:`changed` makes of the old ones.

    QuantizeLinear and DequantizeLinear keep a scale of their own where they have one. What doesn't change is the very
    same tensor afterwards.
    """

    def changed(self, scale: NDArray[Any], zero_point: NDArray[Any]) -> Parameters:
        raise NotImplementedError

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        old: dict[ir.Node, NDArray[Any]] = {}
        for node in [node for node in model.graph if node.op_type == "QuantizeLinear"]:
            if tensor_of(node.inputs[0]) is not None:
                continue
            scale, zero_point = _parameters(node)
            if self.changed(scale, zero_point)[1] is zero_point:
                continue
            for user in (node, *_dequantizers(node.outputs[0])):
                if user not in old:
                    old[user] = self._change(editor, user, zero_point.dtype)
                if not np.array_equal(np.broadcast_to(old[user], zero_point.shape), zero_point):
                    raise ValueError(f"{user.op_type} {user.name}: another zero point than that of {node.name}")
        return done(model)

    def _change(self, editor: Editor, node: ir.Node, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Give one node of a pair its new parameters; returns its old zero point."""
        scale, zero_point = _parameters(node, dtype)
        new_scale, new_zero_point = self.changed(scale, zero_point)
        stem, scale_of = node.outputs[0].name, node.inputs[1]
        if new_scale is not scale:
            scale_of = editor.constant(f"{stem}_scale", new_scale)
        assert scale_of is not None
        set_parameters(node, scale_of, editor.constant(f"{stem}_zero_point", new_zero_point))
        return zero_point


@dataclass
class RetargetActivations(_ChangeActivations):
    """Write every 8-bit activation quantizer in its signed or unsigned form; dequantized values stay exactly the same.

    ``scale * (q - z)`` doesn't change when q and z are both shifted by 128, and [-128, 127] becomes [0, 255], so
    nothing is calibrated again: scales are the very same tensors. Weights (a quantized constant, or a constant with a
    pair of its own) and quantizers of other widths stay as they are.

    Raises:
        ValueError: a quantized tensor is an output of the graph, or is read by something else than DequantizeLinear,
            Concat and shape operators, or a scale or zero point is computed.
    """

    signed: bool

    def changed(self, scale: NDArray[Any], zero_point: NDArray[Any]) -> Parameters:
        wanted = np.dtype(np.int8 if self.signed else np.uint8)
        if zero_point.dtype == wanted or zero_point.dtype not in _EIGHT_BIT:
            return scale, zero_point
        shift = np.int16(-SHIFT if self.signed else SHIFT)
        return scale, (zero_point.astype(np.int16) + shift).astype(wanted)


class SymmetricActivations(_ChangeActivations):
    """Write every activation quantizer signed with zero point 0, the only kind that TensorRT knows.

    The range grows to its larger side: an unsigned quantizer of positive values loses one bit. A quantizer whose zero
    point is in the middle of its range (s8: 0; u8: 128) keeps its scale bit for bit.

    Raises:
        ValueError: as :class:`RetargetActivations`, or a quantizer is not of 8 bits.
    """

    def changed(self, scale: NDArray[Any], zero_point: NDArray[Any]) -> Parameters:
        if zero_point.dtype not in _EIGHT_BIT:
            raise ValueError(f"a quantizer of {zero_point.dtype} has no symmetric 8-bit form")
        middle = SHIFT if zero_point.dtype == np.uint8 else 0
        new = np.zeros_like(zero_point, np.int8)
        if np.all(zero_point == middle):
            return scale, zero_point if zero_point.dtype == np.int8 else new
        limits = np.iinfo(zero_point.dtype)
        reach = np.maximum(limits.max - zero_point.astype(np.int16), zero_point.astype(np.int16) - limits.min)
        return (scale * reach / np.iinfo(np.int8).max).astype(scale.dtype), new


def _parameters(node: ir.Node, dtype: np.dtype[Any] | None = None) -> Parameters:
    """A node's constant scale and zero point; ``dtype`` is the zero point's where the node names none.

    Raises:
        ValueError: one of them is computed.
    """
    scale = constant(node.inputs[1])
    if scale is None:
        raise ValueError(f"{node.op_type} {node.name}: its scale is computed, not constant")
    if dtype is not None and optional_input(node, 2) is None:
        return scale, np.zeros(scale.shape, dtype)
    return scale, zero_point_of(node)


def _dequantizers(quantized: ir.Value) -> Iterator[ir.Node]:
    """Every DequantizeLinear that reads ``quantized``, directly or below operators that only move elements."""
    if quantized.is_graph_output():
        raise ValueError(f"the quantized tensor {quantized.name} is an output of the graph")
    quantized.type = None
    for reader in quantized.consumers():
        if reader.op_type == "DequantizeLinear":
            yield reader
        elif reader.op_type in SHAPE_OPERATORS or reader.op_type == "Concat":
            for output in reader.outputs:
                yield from _dequantizers(output)
        else:
            raise ValueError(f"{reader.op_type} {reader.name} reads the quantized tensor {quantized.name}")
