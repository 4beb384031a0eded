"""Find attention that is spelled out in a graph.

torch.onnx writes attention as ten nodes that onnxruntime 1.31 leaves as they are. The pattern, with (B, S, N x D) for
(batch, tokens, heads x head_dim)::

    q, k, v = Transpose(Reshape(linear))                     (B, N, S, D)
    Reshape(Transpose(MatMul(Softmax(scale * MatMul(q, k^T) + mask), v)))

``softmax(scale q k^T + mask) v`` is Vaswani et al. 2017 (arXiv:1706.03762), equation 1, for every head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from vlm_edge.graphs.edit import attribute, constant, maker, only_reader, tensor_of

SPLIT_HEADS = (0, 2, 1, 3)
"""(B, S, N, D) <-> (B, N, S, D)."""


@dataclass(frozen=True)
class Operand:
    """The source of a query, key or value.

    ``tensor`` is (B, S, N x D), or (B, S, parts x N x D) of which ``part`` is meant, or (B, N, S, D) when ``by_head``.
    """

    tensor: ir.Value
    part: int | None = None
    parts: int = 1
    by_head: bool = False


@dataclass(frozen=True)
class Attention:
    """One match: its operands, and the output of its last Reshape (B, S, N x D).

    ``mask`` is additive. ``query_by_head`` and ``context`` are the first MatMul's queries and the second one's output,
    both (B, N, S, D). ``heads`` is 0 where the graph says only ``head_dim``; :func:`fitted` fills it in. Two attentions
    of one ``length`` have the same number of query tokens.
    """

    query: Operand
    key: Operand
    value: Operand
    mask: ir.Value | None
    scale: float
    heads: int
    head_dim: int
    output: ir.Value
    length: ir.Value
    query_by_head: ir.Value
    context: ir.Value


def find_attentions(model: ir.Model) -> list[Attention]:
    """Every match, by operators and constants alone; :func:`fitted` proves the shapes that these can't."""
    found = [_match(node) for node in model.graph if node.op_type == "Softmax"]
    return [attention for attention in found if attention is not None]


def operands(attention: Attention) -> tuple[ir.Value, ...]:
    """The values whose shapes :func:`fitted` asks for."""
    found = (attention.query.tensor, attention.key.tensor, attention.value.tensor, attention.mask, attention.output)
    return tuple(value for value in found if value is not None)


def fitted(attention: Attention, shapes: Mapping[str, tuple[int, ...]]) -> Attention | None:
    """The match with its ``heads`` if the operator computes the same, given every operand's shape in a run.

    The run's batch, tokens and head sizes have to differ from each other for this to prove anything.
    """
    query, output = (shapes[str(value.name)] for value in (attention.query.tensor, attention.output))
    mask = () if attention.mask is None else shapes[str(attention.mask.name)]
    if len(query) != 3 or len(output) != 3 or len(mask) > 4:
        return None
    batch, tokens, width = query[0], query[1], query[2] // attention.query.parts
    heads = attention.heads or width // attention.head_dim
    if output[:2] != (batch, tokens) or heads * (width // heads) != width:
        return None
    for operand in (attention.key, attention.value):
        shape = shapes[str(operand.tensor.name)]
        if operand.by_head:
            fits = len(shape) == 4 and shape[:2] == (batch, heads)
        else:
            fits = len(shape) == 3 and shape[0] == batch and shape[2] // operand.parts % heads == 0
        if not fits:
            return None
    return replace(attention, heads=heads)


def _match(softmax: ir.Node) -> Attention | None:
    if attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    context = only_reader(softmax.outputs[0], "MatMul")
    merged = only_reader(context.outputs[0], "Transpose") if context is not None else None
    last = only_reader(merged.outputs[0], "Reshape") if merged is not None else None
    if context is None or merged is None or last is None or context.inputs[0] is not softmax.outputs[0]:
        return None
    scored = _scaled_scores(softmax.inputs[0])
    if attribute(merged, "perm") != SPLIT_HEADS or scored is None:
        return None
    product, scale, mask = scored
    by_head, keys, values = product.inputs[0], product.inputs[1], context.inputs[1]
    query = _split_heads(by_head)
    if query is None or by_head is None or values is None:
        return None
    target = _head_shape(by_head)
    heads, head_dim = _shape_entry(target, -2) or 0, _shape_entry(target, -1) or 0
    if not heads and not head_dim:
        return None
    length = query.tensor if tensor_of(target) is not None else target
    key, key_by_head = _key(keys)
    value = _split_heads(values)
    if key is None or value is None:
        if key_by_head is None:
            return None
        key, value = Operand(key_by_head, by_head=True), Operand(values, by_head=True)
    return Attention(
        query, key, value, mask, scale, heads, head_dim, last.outputs[0], length, by_head, context.outputs[0]
    )


def _scaled_scores(value: ir.Value | None) -> tuple[ir.Node, float, ir.Value | None] | None:
    """Softmax's input as (the MatMul, its factor, the mask or None)."""
    node, mask, scale = maker(value), None, 1.0
    if node is not None and node.op_type == "Add":
        scores = [index for index in (0, 1) if _product(node.inputs[index]) is not None]
        if len(scores) != 1:
            return None
        mask = node.inputs[1 - scores[0]]
        node = maker(node.inputs[scores[0]])
    if node is not None and node.op_type in ("Div", "Mul"):
        factor = constant(node.inputs[1])
        if factor is None or factor.size != 1:
            return None
        scale = 1 / float(factor.item()) if node.op_type == "Div" else float(factor.item())
        node = maker(node.inputs[0])
    if node is None or node.op_type != "MatMul":
        return None
    return node, scale, mask


def _product(value: ir.Value | None) -> ir.Node | None:
    """The MatMul behind ``value``, a constant factor apart."""
    scaled = maker(value, "Div", "Mul")
    if scaled is not None and tensor_of(scaled.inputs[1]) is not None:
        value = scaled.inputs[0]
    return maker(value, "MatMul")


def _split_heads(value: ir.Value | None) -> Operand | None:
    """(B, N, S, D) that is Transpose(Reshape(x)), or one part of a packed projection of all three."""
    node = maker(value, "Transpose", "Gather")
    if node is None:
        return None
    if node.op_type == "Transpose" and attribute(node, "perm") == SPLIT_HEADS:
        reshape = maker(node.inputs[0], "Reshape")
        return _operand(reshape.inputs[0]) if reshape is not None else None
    if node.op_type == "Gather" and attribute(node, "axis", 0) == 0:
        index, packed = constant(node.inputs[1]), maker(node.inputs[0], "Transpose")
        reshape = maker(packed.inputs[0], "Reshape") if packed is not None else None
        if index is None or index.ndim or packed is None or reshape is None:
            return None
        parts = _shape_entry(reshape.inputs[1], -3)
        if attribute(packed, "perm") == (2, 0, 3, 1, 4) and parts is not None:
            return _operand(reshape.inputs[0], int(index), parts)
    return None


def _operand(value: ir.Value | None, part: int | None = None, parts: int = 1) -> Operand | None:
    return None if value is None else Operand(value, part, parts)


def _key(value: ir.Value | None) -> tuple[Operand | None, ir.Value | None]:
    """k^T (B, N, D, T) as (its operand, k by head), each None where there is none."""
    node = maker(value, "Transpose")
    perm = None if node is None else attribute(node, "perm")
    if node is not None and perm == (0, 1, 3, 2):
        return _split_heads(node.inputs[0]), node.inputs[0]
    if node is not None and perm == (0, 2, 3, 1):
        reshape = maker(node.inputs[0], "Reshape")
        if reshape is not None:
            return _operand(reshape.inputs[0]), None
    return None, None


def _head_shape(value: ir.Value) -> ir.Value:
    """The target of the Reshape that makes the heads of what :func:`_split_heads` found."""
    node = maker(value, "Transpose") or maker(maker(value).inputs[0])  # type: ignore[union-attr]
    reshape = None if node is None else maker(node.inputs[0])
    assert reshape is not None
    target = reshape.inputs[1]
    assert target is not None
    return target


def _shape_entry(value: ir.Value | None, index: int) -> int | None:
    """One positive entry, counted from the end, of a Reshape's target: a constant, or a Concat of single entries."""
    entries = constant(value)
    if entries is None:
        node = maker(value, "Concat")
        if node is None or len(node.inputs) < -index:
            return None
        entries, index = constant(node.inputs[index]), 0
        if entries is None or entries.size != 1:
            return None
    return int(entries.ravel()[index]) if entries.size >= abs(index) and entries.ravel()[index] > 0 else None
