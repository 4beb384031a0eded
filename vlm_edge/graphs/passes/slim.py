"""Write a graph in as few bytes as it needs: the same operators on the same values."""

from __future__ import annotations

import hashlib
import string

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedOpsetsPass

from vlm_edge.graphs.edit import remove_unused, values_by_name

_DIGITS = string.digits + string.ascii_letters


class ClearNotes(ir.passes.InPlacePass):
    """Remove doc strings, metadata and inner shapes: they take space, and may hold paths of the exporter."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        ClearMetadataAndDocStringPass()(model)
        model.metadata_props.clear()
        model.doc_string = None
        for value in values_by_name(model.graph).values():
            value.metadata_props.clear()
            value.doc_string = None
            tensor = value.const_value
            if tensor is not None and (tensor.doc_string or tensor.metadata_props):
                value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
            if not value.is_graph_input() and not value.is_graph_output():
                value.type = value.shape = None
        return ir.passes.PassResult(model, True)


class Slim(ir.passes.InPlacePass):
    """Remove notes and unused parts, store equal constants once, and give inner values names of a few letters.

    Constants of fewer bytes than ``smallest_shared`` are left as they are. Inputs and outputs keep their names. torch's
    exporter writes where in the source every node came from, which may be a third of a small model's file.
    """

    def __init__(self, *, smallest_shared: int = 0) -> None:
        self._smallest_shared = smallest_shared

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        ClearNotes()(model)
        remove_unused(model)
        _share_constants(model.graph, self._smallest_shared)
        if not model.functions and not any(model.graph.subgraphs()):
            _shorten_names(model.graph)
        RemoveUnusedOpsetsPass()(model)
        return ir.passes.PassResult(model, True)


def _share_constants(graph: ir.Graph, smallest: int) -> None:
    """Merge initializers of the same type, shape and bytes; graph outputs keep their own.

    onnx_ir's own pass has a largest size to share and no smallest one, and compares bytes that it copies.
    """
    first: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < smallest or value.is_graph_output() or value.is_graph_input():
            continue
        key = tensor.dtype, tuple(tensor.shape.numpy()), hashlib.sha256(tensor.tobytes()).digest()
        kept = first.setdefault(key, value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            graph.initializers.pop(str(value.name))


def _shorten_names(graph: ir.Graph) -> None:
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    inner = [value for node in graph for value in (*node.inputs, *node.outputs) if value is not None]
    inner = [value for value in dict.fromkeys(inner) if value.name and value.name not in kept]
    for position, value in enumerate(inner):  # out of the way of the new names
        value.name = f"\0{position}"
    names = (name for number in range(len(inner) + len(kept)) if (name := _base62(number)) not in kept)
    for value, name in zip(inner, names, strict=False):
        value.name = name
    for node in graph:
        node.name = ""


def _base62(number: int) -> str:
    """0, 1, ... Z, 10, 11 ..."""
    text = _DIGITS[number % 62]
    while number >= 62:
        number //= 62
        text = _DIGITS[number % 62] + text
    return text
