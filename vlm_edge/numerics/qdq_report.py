"""What of a graph runs in integers, what stays in floating point, and what its weights take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from vlm_edge.numerics.qdq_graph import SHAPE_OPERATORS, Graph
from vlm_edge.numerics.qdq_retarget import HEAVY_OPERATORS, quantizer_above

INTEGER_OPERATORS = frozenset(
    {
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QLinearMatMul",
        "QLinearConv",
        "MatMulInteger",
        "ConvInteger",
        "QGemm",
        "MatMulNBits",
    }
)
"""Operators that multiply integers."""
_FOUR_BITS = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
"""Types of which two share a byte."""


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


def quantized_ops(model: onnx.ModelProto) -> QuantizedOps:
    """Count; works on a stage's result and on what onnxruntime made of it when it loaded it."""
    graph = Graph(model)
    counts = QuantizedOps(stray_pairs=sum(_is_stray(graph, node) for node in graph.nodes))
    for node in graph.nodes:
        if node.op_type in INTEGER_OPERATORS:
            counts.integer[node.op_type] += 1
        elif node.op_type in HEAVY_OPERATORS or node.op_type == "FusedMatMul":
            quantized = all(quantizer_above(graph, name) for name in node.input[:2])
            (counts.fake if quantized else counts.floating)[node.op_type] += 1
    for tensor in graph.initializers.values():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        size = int(np.prod(tensor.dims)) * dtype.itemsize
        counts.bytes_by_dtype[np.dtype(dtype).name] += -(-size // 2) if tensor.data_type in _FOUR_BITS else size
    return counts


def _is_stray(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.op_type != "DequantizeLinear" or graph.constant(node.input[0]) is not None:
        return False
    return not _of_integer_kernel(graph, node.input[0]) and not _reaches_heavy(graph, node.output[0])


def _of_integer_kernel(graph: Graph, name: str) -> bool:
    """Whether levels come from a kernel that has no float output, directly or through what only moves elements."""
    node = graph.producers.get(name)
    while node is not None and node.op_type in SHAPE_OPERATORS:
        node = graph.producers.get(node.input[0])
    return node is not None and (node.op_type.startswith("QLinear") or node.op_type == "QGemm")


def _reaches_heavy(graph: Graph, name: str) -> bool:
    """Whether a heavy operator reads ``name``, directly or below operators that only move elements."""
    for reader in graph.consumers[name]:
        if reader.op_type in HEAVY_OPERATORS:
            return True
        moves = reader.op_type in SHAPE_OPERATORS or reader.op_type == "Concat"
        if moves and any(_reaches_heavy(graph, output) for output in reader.output):
            return True
    return False
