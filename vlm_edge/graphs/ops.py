"""The one table of operators: where a product's weight is, whether it multiplies integers, and what it multiplies.

Shapes and places: https://onnx.ai/onnx/operators (ai.onnx) and onnxruntime's docs/ContribOperators.md (com.microsoft).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

MICROSOFT = "com.microsoft"
"""The operator set of onnxruntime's own kernels."""

SHAPE_OPERATORS = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather", "Split", "Expand"}
)
"""Operators whose outputs hold values of their first input and nothing else."""

OPEN_SUMS = frozenset(
    {"Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"}
    | {"ReduceLogSumExp", "CumSum", "AveragePool", "GlobalAveragePool", "LpNormalization", "GroupNormalization"}
    | {"InstanceNormalization", "MeanVarianceNormalization"}
)
"""Operators that add up many values, in a precision that ONNX leaves open. LayerNormalization and RMSNormalization say
theirs, float32 (``stash_type``); products add up in float32 on matrix units."""

Shape = tuple[int, ...]


class UncountedOperator(Exception):  # noqa: N818 - it is an answer, not a fault
    """A node multiplies, and its multiply-accumulates have no formula."""


@dataclass(frozen=True)
class Call:
    """One node in one run: the shapes of its inputs (None where one is left out) and of its first output."""

    inputs: tuple[Shape | None, ...]
    output: Shape
    attributes: dict[str, Any]
    domain: str = ""

    def __getitem__(self, position: int) -> Shape:
        shape = self.inputs[position]
        assert shape is not None
        return shape

    def optional(self, position: int) -> Shape | None:
        return self.inputs[position] if position < len(self.inputs) else None


@dataclass(frozen=True)
class Product:
    """An operator that multiplies and accumulates.

    macs: multiply-accumulates of one call: inner products, not biases, scales, softmax or element-wise work; the
        convention of fvcore and of ``torch.utils.flop_counter`` (2 FLOPs each). None: there is no formula.
    weight: position of the weight among the inputs; None for an attention.
    scale, zero_point: positions of the weight's, where integers are multiplied.
    integer: it multiplies integers.
    channels: the weight's axis of output channels.
    """

    macs: Callable[[Call], int] | None
    weight: int | None = None
    scale: int | None = None
    zero_point: int | None = None
    integer: bool = False
    channels: int | None = None


def _matmul(call: Call) -> int:
    left = call[0]
    return math.prod(call.output) * (left[-2] if call.attributes.get("transA") else left[-1])


def _matmul_blocks(call: Call) -> int:
    """The weight is packed, its inner width is the attribute K."""
    return math.prod(call.output) * int(call.attributes["K"])


def _gemm(call: Call) -> int:
    rows, columns = call[0]
    return math.prod(call.output) * (rows if call.attributes.get("transA") else columns)


def _conv(call: Call, weight: int) -> int:
    """Weight (out, in / group, *kernel): each output element takes in / group * kernel products."""
    return math.prod(call.output) * math.prod(call[weight][1:])


def _conv_transpose(call: Call) -> int:
    """Weight (in, out / group, *kernel): each input element takes out / group * kernel products."""
    return math.prod(call[0]) * math.prod(call[1][1:])


def _einsum(call: Call) -> int:
    """The product over all letters' sizes, for two operands."""
    equation = str(call.attributes["equation"]).replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        raise UncountedOperator(f"Einsum {equation}")
    sizes = {
        letter: size for position, term in enumerate(terms) for letter, size in zip(term, call[position], strict=True)
    }
    return math.prod(sizes.values())


def _attention(call: Call) -> int:
    """ai.onnx Attention: (batch, heads, tokens, dim), or (batch, tokens, heads * dim); past keys are input 4.

    com.microsoft's operator of that name projects as well.
    """
    if call.domain == MICROSOFT:
        return _projected_attention(call, past_index=4)
    query, key, value, past = call[0], call[1], call[2], call.optional(4)
    total = key[-2] + (past[-2] if past else 0)
    if len(query) == 4:
        batch, heads, tokens, dim = query
        return batch * heads * tokens * total * (dim + value[-1])
    groups = call.attributes["q_num_heads"] // call.attributes["kv_num_heads"]
    return int(query[0] * query[1] * total * (query[2] + groups * value[2]))


def _multi_head_attention(call: Call) -> int:
    """com.microsoft MultiHeadAttention; past keys are input 6. Packed forms have 5 dimensions."""
    query = call[0]
    if len(query) == 5:  # (batch, tokens, heads, 3, head_dim)
        batch, tokens, heads, _, dim = query
        return batch * tokens * tokens * 2 * heads * dim
    batch, tokens, hidden = query
    key, value, past = call[1], call.optional(2), call.optional(6)
    total = (key[2] if len(key) == 4 else key[1]) + (past[2] if past else 0)
    width = hidden if value is None else value[1] * value[3] if len(value) == 4 else value[2]
    return batch * tokens * total * (hidden + width)


def _projected_attention(call: Call, past_index: int) -> int:
    """com.microsoft Attention and QAttention: the input is projected to queries, keys and values by one weight."""
    batch, tokens, width = call[0]
    columns, past = call[1][1], call.optional(past_index)
    query, _, value = call.attributes.get("qkv_hidden_sizes", [columns // 3] * 3)
    total = tokens + (past[3] if past else 0)
    return int(batch * tokens * (width * columns + total * (query + value)))


def _group_query_attention(call: Call) -> int:
    """com.microsoft GroupQueryAttention: queries (batch, tokens, heads * dim), or all three packed; past is input 3."""
    heads, key_heads = call.attributes["num_heads"], call.attributes["kv_num_heads"]
    batch, tokens, hidden = call[0]
    key, past = call.optional(1), call.optional(3)
    dim = hidden // (heads if key else heads + 2 * key_heads)
    total = (key[1] if key else tokens) + (past[2] if past else 0)
    return int(batch * tokens * total * 2 * heads * dim)


PRODUCTS: dict[str, Product] = {
    "MatMul": Product(_matmul, 1, channels=-1),
    "FusedMatMul": Product(_matmul, 1, channels=-1),
    "TransposeMatMul": Product(None, 1),
    "Gemm": Product(_gemm, 1, channels=1),
    "FusedGemm": Product(_gemm, 1, channels=1),
    "Conv": Product(partial(_conv, weight=1), 1, channels=0),
    "FusedConv": Product(partial(_conv, weight=1), 1, channels=0),
    "ConvTranspose": Product(_conv_transpose, 1, channels=1),
    "Einsum": Product(_einsum),
    "MatMulInteger": Product(_matmul, 1, None, 3, integer=True),
    "MatMulIntegerToFloat": Product(_matmul, 1, 3, 5, integer=True),
    "DynamicQuantizeMatMul": Product(_matmul, 1, 2, 3, integer=True),
    "QLinearMatMul": Product(_matmul, 3, 4, 5, integer=True),
    "MatMulNBits": Product(_matmul_blocks, 1, 2, 3, integer=True),
    "MatMulBnb4": Product(_matmul_blocks, 1),
    "QGemm": Product(_gemm, 3, 4, 5, integer=True),
    "ConvInteger": Product(partial(_conv, weight=1), 1, None, 3, integer=True, channels=0),
    "QLinearConv": Product(partial(_conv, weight=3), 3, 4, 5, integer=True, channels=0),
    "Attention": Product(_attention),
    "MultiHeadAttention": Product(_multi_head_attention),
    "GroupQueryAttention": Product(_group_query_attention),
    "DecoderMaskedMultiHeadAttention": Product(None),
    "QAttention": Product(partial(_projected_attention, past_index=8)),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DeformConv", "MoE", "QMoE"), Product(None)),
}
"""Every operator that multiplies and accumulates."""

INTEGER_PRODUCTS = 4
"""MatMulNBits' ``accuracy_level`` at which the data is rounded to int8, too, a block at a time: 45 dB, and on VNNI 1.2
to 3 times as fast as products in float32 from 4 bits, up to 16 times from 8 bits."""
HEAVY_OPERATORS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
"""ai.onnx operators whose first two inputs are multiplied, so that integers make them faster."""
INTEGER_OPERATORS = frozenset(name for name, product in PRODUCTS.items() if product.integer)
ATTENTIONS = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention"})
"""Fused attention, which onnxruntime computes in floating point."""
FLOAT_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "TransposeMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv"}) | {
    "ConvTranspose"
}
"""Operators that multiply in floating point, and that integers would make faster."""


def multiplies(op_type: str) -> bool:
    """Whether an operator multiplies and accumulates, as far as its name tells."""
    return op_type in PRODUCTS or any(part in op_type for part in ("Attention", "MatMul", "Gemm"))


def weight_axis(op_type: str, *, transposed: bool = False) -> int | None:
    """The axis of output channels of a product's weight, Gemm's turned round where ``transposed``; None: no weight."""
    product = PRODUCTS.get(op_type)
    if product is None or op_type not in HEAVY_OPERATORS:
        return None
    return 0 if op_type == "Gemm" and transposed else product.channels
