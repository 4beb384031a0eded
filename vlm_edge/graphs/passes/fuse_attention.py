"""Write attention as ONNX's one operator for it, ``Attention`` of operator set 23."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from vlm_edge.graphs.attention import Attention, Operand
from vlm_edge.graphs.edit import Editor, done

OPSET, IR_VERSION = 23, 11
"""The first that have the operator (https://onnx.ai/onnx/operators/onnx__Attention.html). Since operator set 20, which
graphs are exported with, no other one has become something else: they take more types."""


class FuseAttentions(ir.passes.InPlacePass):
    """Every one of ``attentions`` becomes one node, and the graph one of operator set 23.

    The node splits heads and merges them itself, unless keys and values are there by head (a cache): it takes all
    three in one form. onnxruntime wants a mask with the query's tokens in its last place but one, so broadcast masks
    are expanded: once for all attentions that share a mask and the query's length.

    Args:
        attentions: of this very graph, proven by :func:`vlm_edge.graphs.attention.fitted`.
    """

    def __init__(self, attentions: Sequence[Attention]) -> None:
        self._attentions = attentions

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not self._attentions:
            return ir.passes.PassResult(model, False)
        editor = Editor(model.graph)
        parts: dict[ir.Value, Sequence[ir.Value]] = {}
        masks: dict[tuple[ir.Value, ir.Value], ir.Value] = {}
        for number, attention in enumerate(self._attentions):
            last = (attention.context if attention.key.by_head else attention.output).producer()
            assert last is not None
            if attention.key.by_head:
                heads: dict[str, Any] = {}
                inputs = [attention.query_by_head, attention.key.tensor, attention.value.tensor]
            else:
                heads = {"q_num_heads": attention.heads, "kv_num_heads": attention.heads}
                operands = (attention.query, attention.key, attention.value)
                inputs = [_operand(editor, last, operand, parts) for operand in operands]
            if attention.mask is not None:
                key = attention.mask, attention.length
                if key not in masks:
                    masks[key] = _expanded_mask(editor, last, attention, attention.mask)
                inputs.append(masks[key])
            editor.replace(last, "Attention", inputs, name=f"attention_{number}", scale=attention.scale, **heads)
        model.graph.opset_imports[""] = max(model.graph.opset_imports[""], OPSET)
        model.ir_version = max(model.ir_version, IR_VERSION)
        return done(model)


def _operand(editor: Editor, before: ir.Node, operand: Operand, parts: dict[ir.Value, Sequence[ir.Value]]) -> ir.Value:
    """The operand's tensor; a part of a packed one is split off first, once for its three parts."""
    if operand.part is None:
        return operand.tensor
    if operand.tensor not in parts:
        names = [editor.fresh(f"{operand.tensor.name}_part{index}") for index in range(operand.parts)]
        settings = {"axis": -1, "num_outputs": operand.parts}
        split = ir.node("Split", [operand.tensor], settings, outputs=[ir.Value(name=name) for name in names])
        editor.graph.insert_before(before, split)
        parts[operand.tensor] = split.outputs
    return parts[operand.tensor][operand.part]


def _expanded_mask(editor: Editor, before: ir.Node, attention: Attention, mask: ir.Value) -> ir.Value:
    """The mask expanded to (1 or B, 1 or N, S, T)."""
    stem = f"{mask.name}_for_{attention.length.name}"
    one = editor.constant(f"{stem}_one", np.array([1], np.int64))
    tokens = editor.op(before, "Shape", [attention.query.tensor], f"{stem}_tokens", start=1, end=2)
    shape = editor.op(before, "Concat", [one, one, tokens, one], f"{stem}_shape", axis=0)
    return editor.op(before, "Expand", [mask, shape], stem)
