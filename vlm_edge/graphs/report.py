"""Count a graph's operators that run in integers and in floating point, and the bytes of its weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from vlm_edge.graphs.edit import maker, tensor_of
from vlm_edge.graphs.match import quantizer_above
from vlm_edge.graphs.ops import HEAVY_OPERATORS, INTEGER_OPERATORS, SHAPE_OPERATORS


@dataclass(frozen=True)
class QuantizedOps:
    """Counts of one graph.

    integer: operators that multiply integers, by type. floating: MatMul, Gemm and Conv in floating point, by type
    (attention's products among them). fake: those that read dequantized values, which an engine may run in integers.
    stray_pairs: activation DequantizeLinear that no heavy operator reads, but for those of what an integer kernel
    wrote. bytes_by_dtype: of the constants.
    """

    integer: Counter[str] = field(default_factory=Counter)
    floating: Counter[str] = field(default_factory=Counter)
    fake: Counter[str] = field(default_factory=Counter)
    stray_pairs: int = 0
    bytes_by_dtype: Counter[str] = field(default_factory=Counter)

    def as_facts(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "integer": dict(sorted(self.integer.items())),
            "fake_quantized": dict(sorted(self.fake.items())),
            "floating": dict(sorted(self.floating.items())),
            "stray_pairs": self.stray_pairs,
            "constant_bytes": dict(sorted(self.bytes_by_dtype.items())),
        }


def quantized_ops(model: ir.Model) -> QuantizedOps:
    """Count a graph: a stage's result, or onnxruntime's optimized form of it."""
    counts = QuantizedOps(stray_pairs=sum(map(_is_stray, model.graph)))
    for node in model.graph:
        if node.op_type in INTEGER_OPERATORS:
            counts.integer[node.op_type] += 1
        elif node.op_type in HEAVY_OPERATORS or node.op_type == "FusedMatMul":
            quantized = all(quantizer_above(value) for value in node.inputs[:2])
            (counts.fake if quantized else counts.floating)[node.op_type] += 1
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            counts.bytes_by_dtype[value.const_value.dtype.numpy().name] += value.const_value.nbytes
    return counts


def _is_stray(node: ir.Node) -> bool:
    if node.op_type != "DequantizeLinear" or tensor_of(node.inputs[0]) is not None:
        return False
    return not _of_integer_kernel(node.inputs[0]) and not _reaches_heavy(node.outputs[0])


def _of_integer_kernel(value: ir.Value | None) -> bool:
    """Whether it comes from a kernel without a float output, directly or through operators that only move elements."""
    node = maker(value)
    while node is not None and node.op_type in SHAPE_OPERATORS:
        node = maker(node.inputs[0])
    return node is not None and (node.op_type.startswith("QLinear") or node.op_type == "QGemm")


def _reaches_heavy(value: ir.Value) -> bool:
    """Whether a heavy operator reads ``value``, directly or below operators that only move elements."""
    for reader in value.consumers():
        if reader.op_type in HEAVY_OPERATORS:
            return True
        moves = reader.op_type in SHAPE_OPERATORS or reader.op_type == "Concat"
        if moves and any(_reaches_heavy(output) for output in reader.outputs):
            return True
    return False
