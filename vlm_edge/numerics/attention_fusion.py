"""Spelled-out attention as ONNX's one operator for it, ``Attention`` of operator set 23.

torch.onnx writes attention as ten nodes that onnxruntime 1.31 leaves as they are. The pattern, with (B, S, N x D) for
(batch, tokens, heads x head_dim)::

    q, k, v = Transpose(Reshape(linear))                     (B, N, S, D)
    Reshape(Transpose(MatMul(Softmax(scale * MatMul(q, k^T) + mask), v)))

``softmax(scale q k^T + mask) v`` is Vaswani et al. 2017 (arXiv:1706.03762), equation 1, for every head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vlm_edge.numerics.qdq_graph import Graph, attribute, edited

SPLIT_HEADS = [0, 2, 1, 3]
"""(B, S, N, D) <-> (B, N, S, D)."""
OPSET, IR_VERSION = 23, 11
"""The first that have the operator (https://onnx.ai/onnx/operators/onnx__Attention.html). Since operator set 20, which
graphs are exported with, no other one has become something else: they take more types."""


@dataclass(frozen=True)
class Operand:
    """Where a query, key or value comes from.

    ``tensor`` is (B, S, N x D), or (B, S, parts x N x D) of which ``part`` is meant, or (B, N, S, D) when ``by_head``.
    """

    tensor: str
    part: int | None = None
    parts: int = 1
    by_head: bool = False


@dataclass(frozen=True)
class Attention:
    """One match: its operands, and the output of its last Reshape (B, S, N x D).

    ``query_by_head`` and ``context`` are the first MatMul's queries and the second one's output, both (B, N, S, D).
    ``heads`` is 0 where the graph says only ``head_dim``; :func:`fitted` fills it in. Two attentions of one ``length``
    have the same number of query tokens.
    """

    query: Operand
    key: Operand
    value: Operand
    mask: str
    """Name of the additive mask, or empty."""
    scale: float
    heads: int
    head_dim: int
    output: str
    length: str
    query_by_head: str
    context: str


def find_attentions(model: onnx.ModelProto) -> list[Attention]:
    """Every match, by names and constants alone; :func:`fitted` proves the shapes that names can't."""
    graph = Graph(model)
    found = [_match(graph, node) for node in graph.nodes if node.op_type == "Softmax"]
    return [attention for attention in found if attention is not None]


def operands(attention: Attention) -> tuple[str, ...]:
    """The tensors whose shapes :func:`fitted` asks for."""
    names = (attention.query.tensor, attention.key.tensor, attention.value.tensor, attention.mask, attention.output)
    return tuple(name for name in names if name)


def fitted(attention: Attention, shapes: Mapping[str, tuple[int, ...]]) -> Attention | None:
    """The match with its ``heads`` if the operator computes the same, given every operand's shape as a run showed it.

    The run's batch, tokens and head sizes have to differ from each other for this to prove anything.
    """
    query = shapes[attention.query.tensor]
    if len(query) != 3 or len(shapes[attention.output]) != 3 or len(shapes.get(attention.mask, ())) > 4:
        return None
    batch, tokens, width = query[0], query[1], query[2] // attention.query.parts
    heads = attention.heads or width // attention.head_dim
    if shapes[attention.output][:2] != (batch, tokens) or heads * (width // heads) != width:
        return None
    for operand in (attention.key, attention.value):
        shape = shapes[operand.tensor]
        if operand.by_head:
            fits = len(shape) == 4 and shape[:2] == (batch, heads)
        else:
            fits = len(shape) == 3 and shape[0] == batch and shape[2] // operand.parts % heads == 0
        if not fits:
            return None
    return replace(attention, heads=heads)


def fuse_attentions(model: onnx.ModelProto, attentions: list[Attention]) -> onnx.ModelProto:
    """A copy of ``model``, in operator set 23, in which every one of ``attentions`` is one node.

    The node splits heads and merges them itself, unless keys and values are there by head (a cache): it takes all
    three in one form. onnxruntime wants a mask with the query's tokens in its last place but one, so broadcast masks
    are expanded: once for all attentions that share a mask and the query's length.
    """
    if not attentions:
        return model
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    made: set[str] = set()
    for attention in attentions:
        nodes: list[onnx.NodeProto] = []
        if attention.key.by_head:
            output, heads = attention.context, {}
            names = [attention.query_by_head, attention.key.tensor, attention.value.tensor]
        else:
            output, heads = attention.output, {"q_num_heads": attention.heads, "kv_num_heads": attention.heads}
            parts = (attention.query, attention.key, attention.value)
            names = [_operand_nodes(operand, nodes, made) for operand in parts]
        if attention.mask:
            names.append(_mask_nodes(attention, nodes, constants, made))
        name = f"attention_{len(replacements)}"
        nodes.append(helper.make_node("Attention", names, [output], name=name, scale=attention.scale, **heads))
        replacements[graph.position(graph.producers[output])] = nodes
    result = edited(model, replacements, constants)
    result.ir_version = max(result.ir_version, IR_VERSION)
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, OPSET)
    return result


def _operand_nodes(operand: Operand, nodes: list[onnx.NodeProto], made: set[str]) -> str:
    """The operand's tensor; a part of a packed one is split off first, once for its three parts."""
    if operand.part is None:
        return operand.tensor
    names = [f"{operand.tensor}_part{index}" for index in range(operand.parts)]
    if names[0] not in made:
        made.add(names[0])
        nodes.append(helper.make_node("Split", [operand.tensor], names, axis=-1, num_outputs=operand.parts))
    return names[operand.part]


def _mask_nodes(
    attention: Attention, nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], made: set[str]
) -> str:
    """The mask expanded to (1 or B, 1 or N, S, T): nodes are added the first time that it is asked for."""
    expanded = f"{attention.mask}_for_{attention.length}"
    if expanded not in made:
        made.add(expanded)
        one = "attention_one"
        constants[one] = np.array([1], np.int64)
        nodes += [
            helper.make_node("Shape", [attention.query.tensor], [f"{expanded}_tokens"], start=1, end=2),
            helper.make_node("Concat", [one, one, f"{expanded}_tokens", one], [f"{expanded}_shape"], axis=0),
            helper.make_node("Expand", [attention.mask, f"{expanded}_shape"], [expanded]),
        ]
    return expanded


def _match(graph: Graph, softmax: onnx.NodeProto) -> Attention | None:
    if attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    context = graph.only_consumer(softmax.output[0], "MatMul")
    merged = graph.only_consumer(context.output[0], "Transpose") if context is not None else None
    last = graph.only_consumer(merged.output[0], "Reshape") if merged is not None else None
    if context is None or merged is None or last is None or context.input[0] != softmax.output[0]:
        return None
    if attribute(merged, "perm") != SPLIT_HEADS:
        return None
    scored = _scaled_scores(graph, softmax.input[0])
    if scored is None:
        return None
    product, scale, mask = scored
    query = _split_heads(graph, product.input[0])
    if query is None:
        return None
    target = _head_shape(graph, product.input[0])
    heads, head_dim = _shape_entry(graph, target, -2) or 0, _shape_entry(graph, target, -1) or 0
    if not heads and not head_dim:
        return None
    length = query.tensor if graph.constant(target) is not None else target
    key, key_by_head = _key(graph, product.input[1])
    value = _split_heads(graph, context.input[1])
    if key is None or value is None:
        if key_by_head is None:
            return None
        key, value = Operand(key_by_head, by_head=True), Operand(context.input[1], by_head=True)
    by_head = product.input[0], context.output[0]
    return Attention(query, key, value, mask, scale, heads, head_dim, last.output[0], length, *by_head)


def _scaled_scores(graph: Graph, name: str) -> tuple[onnx.NodeProto, float, str] | None:
    """Softmax's input as (the MatMul, its factor, the mask's name or empty)."""
    node, mask, scale = graph.producers.get(name), "", 1.0
    if node is not None and node.op_type == "Add":
        scores = [index for index in (0, 1) if _product(graph, node.input[index]) is not None]
        if len(scores) != 1:
            return None
        mask = node.input[1 - scores[0]]
        node = graph.producers[node.input[scores[0]]]
    if node is not None and node.op_type in ("Div", "Mul"):
        factor = graph.constant(node.input[1])
        if factor is None or factor.size != 1:
            return None
        scale = 1 / float(factor.item()) if node.op_type == "Div" else float(factor.item())
        node = graph.producers.get(node.input[0])
    if node is None or node.op_type != "MatMul":
        return None
    return node, scale, mask


def _product(graph: Graph, name: str) -> onnx.NodeProto | None:
    """The MatMul behind ``name``, a constant factor apart."""
    node = graph.producers.get(name)
    if node is not None and node.op_type in ("Div", "Mul") and graph.constant(node.input[1]) is not None:
        node = graph.producers.get(node.input[0])
    return node if node is not None and node.op_type == "MatMul" else None


def _split_heads(graph: Graph, name: str) -> Operand | None:
    """(B, N, S, D) that is Transpose(Reshape(x)), or one part of a packed projection of all three."""
    node = graph.producers.get(name)
    if node is None:
        return None
    if node.op_type == "Transpose" and attribute(node, "perm") == SPLIT_HEADS:
        reshape = graph.producers.get(node.input[0])
        return Operand(reshape.input[0]) if reshape is not None and reshape.op_type == "Reshape" else None
    if node.op_type == "Gather" and attribute(node, "axis", 0) == 0:
        index, packed = graph.constant(node.input[1]), graph.producers.get(node.input[0])
        if index is None or index.ndim or packed is None or packed.op_type != "Transpose":
            return None
        reshape = graph.producers.get(packed.input[0])
        if attribute(packed, "perm") != [2, 0, 3, 1, 4] or reshape is None or reshape.op_type != "Reshape":
            return None
        parts = _shape_entry(graph, reshape.input[1], -3)
        return Operand(reshape.input[0], int(index), parts) if parts is not None else None
    return None


def _key(graph: Graph, name: str) -> tuple[Operand | None, str | None]:
    """k^T (B, N, D, T) as (its operand, the name of k by head), each None where there is none."""
    node = graph.producers.get(name)
    if node is None or node.op_type != "Transpose":
        return None, None
    perm = attribute(node, "perm")
    if perm == [0, 1, 3, 2]:
        return _split_heads(graph, node.input[0]), node.input[0]
    if perm == [0, 2, 3, 1]:
        reshape = graph.producers.get(node.input[0])
        if reshape is not None and reshape.op_type == "Reshape":
            return Operand(reshape.input[0]), None
    return None, None


def _head_shape(graph: Graph, name: str) -> str:
    """The target of the Reshape that makes the heads of what :func:`_split_heads` found."""
    node = graph.producers[name]
    if node.op_type == "Gather":
        node = graph.producers[node.input[0]]
    return str(graph.producers[node.input[0]].input[1])


def _shape_entry(graph: Graph, name: str, index: int) -> int | None:
    """One positive entry, counted from the end, of a Reshape's target: a constant, or a Concat of single entries."""
    constant = graph.constant(name)
    if constant is None:
        node = graph.producers.get(name)
        if node is None or node.op_type != "Concat" or len(node.input) < -index:
            return None
        constant, index = graph.constant(node.input[index]), 0
        if constant is None or constant.size != 1:
            return None
    return int(constant.ravel()[index]) if constant.size >= abs(index) and constant.ravel()[index] > 0 else None
