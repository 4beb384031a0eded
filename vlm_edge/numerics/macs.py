"""Multiply-accumulates of ONNX nodes, from the shapes that a run gave their tensors.

Counted is what a matrix product, a convolution or an attention multiplies and adds up: the inner products, not biases,
scales, softmax or element-wise work; the convention of fvcore and of ``torch.utils.flop_counter`` (2 FLOPs each).
Shapes: https://onnx.ai/onnx/operators and onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

Shape = tuple[int, ...]
ShapeOf = Callable[[str], Shape]
Node = Any
"""An ``onnx.NodeProto``."""


class UncountedOperator(Exception):  # noqa: N818 - it is an answer, not a fault
    """A node multiplies, and its multiply-accumulates can't be told."""


def multiplying_nodes(graph: Any) -> list[Node]:
    """The nodes of an ``onnx.GraphProto`` that multiply and accumulate.

    Raises:
        UncountedOperator: one is of a kind that has no formula here, or lies in the body of an If, Loop or Scan.
    """
    found = []
    for node in graph.node:
        if any(multiplies(inner) for inner in _nested(node)):
            raise UncountedOperator(f"{node.op_type} {node.name!r} has matrix products in its body")
        if multiplies(node):
            if node.op_type not in _FORMULAS:
                raise UncountedOperator(f"{node.op_type} {node.name!r}")
            found.append(node)
    return found


def multiplies(node: Node) -> bool:
    """Whether the node multiplies and accumulates, as far as its name tells."""
    name = node.op_type
    return name in _FORMULAS or name in _UNCOUNTED or any(part in name for part in ("Attention", "MatMul", "Gemm"))


def node_macs(node: Node, shape_of: ShapeOf) -> int:
    """Multiply-accumulates of one of those nodes; ``shape_of`` gives a tensor's shape by its name."""
    return _FORMULAS[node.op_type](node, shape_of)


def _nested(node: Node) -> Iterator[Node]:
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                yield inner
                yield from _nested(inner)


def _attributes(node: Node) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _input(node: Node, index: int, shape_of: ShapeOf) -> Shape | None:
    """The shape of an optional input, or None where it is left out."""
    return shape_of(node.input[index]) if index < len(node.input) and node.input[index] else None


def _matmul(node: Node, shape_of: ShapeOf) -> int:
    left = shape_of(node.input[0])
    inner = left[-2] if _attributes(node).get("transA") else left[-1]
    return math.prod(shape_of(node.output[0])) * inner


def _matmul_blocks(node: Node, shape_of: ShapeOf) -> int:
    """MatMulNBits: the weight is packed, its inner width is the attribute K."""
    return math.prod(shape_of(node.output[0])) * int(_attributes(node)["K"])


def _gemm(node: Node, shape_of: ShapeOf) -> int:
    rows, columns = shape_of(node.input[0])
    return math.prod(shape_of(node.output[0])) * (rows if _attributes(node).get("transA") else columns)


def _conv(weight: int) -> Callable[[Node, ShapeOf], int]:
    """Weight (out, in / group, *kernel), at that input: each output element takes in / group * kernel products."""
    return lambda node, shape_of: math.prod(shape_of(node.output[0])) * math.prod(shape_of(node.input[weight])[1:])


def _conv_transpose(weight: int) -> Callable[[Node, ShapeOf], int]:
    """Weight (in, out / group, *kernel): each input element takes out / group * kernel products."""
    return lambda node, shape_of: math.prod(shape_of(node.input[0])) * math.prod(shape_of(node.input[weight])[1:])


def _einsum(node: Node, shape_of: ShapeOf) -> int:
    """The product over all letters' sizes, for two operands."""
    equation = _attributes(node)["equation"].decode().replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        raise UncountedOperator(f"Einsum {equation}")
    sizes = {
        letter: size
        for term, name in zip(terms, node.input, strict=True)
        for letter, size in zip(term, shape_of(name), strict=True)
    }
    return math.prod(sizes.values())


def _attention(node: Node, shape_of: ShapeOf) -> int:
    """ai.onnx Attention: (batch, heads, tokens, dim), or (batch, tokens, heads * dim); past keys are input 4.

    com.microsoft's operator of that name projects as well.
    """
    if node.domain == "com.microsoft":
        return _projected_attention(node, shape_of, past_index=4)
    query, key, value = (shape_of(node.input[index]) for index in range(3))
    past = _input(node, 4, shape_of)
    total = key[-2] + (past[-2] if past else 0)
    if len(query) == 4:
        batch, heads, tokens, dim = query
        return batch * heads * tokens * total * (dim + value[-1])
    attributes = _attributes(node)
    groups = attributes["q_num_heads"] // attributes["kv_num_heads"]
    return int(query[0] * query[1] * total * (query[2] + groups * value[2]))


def _multi_head_attention(node: Node, shape_of: ShapeOf) -> int:
    """com.microsoft MultiHeadAttention; past keys are input 6. Packed forms have 5 dimensions."""
    query = shape_of(node.input[0])
    if len(query) == 5:  # (batch, tokens, heads, 3, head_dim)
        batch, tokens, heads, _, dim = query
        return batch * tokens * tokens * 2 * heads * dim
    batch, tokens, hidden = query
    key, value, past = (_input(node, index, shape_of) for index in (1, 2, 6))
    assert key is not None
    total = (key[2] if len(key) == 4 else key[1]) + (past[2] if past else 0)
    width = hidden if value is None else value[1] * value[3] if len(value) == 4 else value[2]
    return batch * tokens * total * (hidden + width)


def _projected_attention(node: Node, shape_of: ShapeOf, past_index: int) -> int:
    """com.microsoft Attention and QAttention: the input is projected to queries, keys and values by one weight."""
    batch, tokens, width = shape_of(node.input[0])
    columns = shape_of(node.input[1])[1]
    past = _input(node, past_index, shape_of)
    query, _, value = _attributes(node).get("qkv_hidden_sizes", [columns // 3] * 3)
    total = tokens + (past[3] if past else 0)
    return int(batch * tokens * (width * columns + total * (query + value)))


def _group_query_attention(node: Node, shape_of: ShapeOf) -> int:
    """com.microsoft GroupQueryAttention: queries (batch, tokens, heads * dim), or all three packed; past is input 3."""
    attributes = _attributes(node)
    heads, key_heads = attributes["num_heads"], attributes["kv_num_heads"]
    batch, tokens, hidden = shape_of(node.input[0])
    key, past = _input(node, 1, shape_of), _input(node, 3, shape_of)
    dim = hidden // (heads if key else heads + 2 * key_heads)
    total = (key[1] if key else tokens) + (past[2] if past else 0)
    return int(batch * tokens * total * 2 * heads * dim)


_UNCOUNTED = frozenset({"LSTM", "GRU", "RNN", "DeformConv", "MoE", "QMoE"})
_FORMULAS: dict[str, Callable[[Node, ShapeOf], int]] = {
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "QLinearMatMul": _matmul,
    "MatMulNBits": _matmul_blocks,
    "MatMulBnb4": _matmul_blocks,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "QGemm": _gemm,
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose(1),
    "Einsum": _einsum,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
    "QAttention": partial(_projected_attention, past_index=8),
    "GroupQueryAttention": _group_query_attention,
}
