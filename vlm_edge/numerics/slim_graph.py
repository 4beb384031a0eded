"""An ONNX graph in as few bytes as it needs: the same operators on the same values."""

from __future__ import annotations

import hashlib
import string

import onnx

from vlm_edge.numerics.qdq_graph import without_notes, without_unused

_DIGITS = string.digits + string.ascii_letters


def slim(model: onnx.ModelProto, *, smallest_shared: int = 0) -> onnx.ModelProto:
    """A copy without notes and unused parts, equal constants stored once, and inner names a few letters long.

    Constants of fewer bytes than ``smallest_shared`` are left as they are.

    Inputs and outputs keep their names. torch's exporter writes where in the source every node came from, which may be
    a third of a small model's file.
    """
    result = without_unused(without_notes(model))
    _share_constants(result, smallest_shared)
    if not result.functions and not any(item.HasField("g") for node in result.graph.node for item in node.attribute):
        _shorten_names(result)
    used = {node.domain for node in result.graph.node} | {function.domain for function in result.functions}
    for index in reversed(range(len(result.opset_import))):
        if result.opset_import[index].domain not in used:
            del result.opset_import[index]
    return result


def _share_constants(model: onnx.ModelProto, smallest: int) -> None:
    """Initializers of the same type, shape and bytes become one; graph outputs keep their own."""
    outputs = {value.name for value in model.graph.output}
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() < smallest:
            continue
        name, tensor.name = tensor.name, ""
        key = hashlib.sha256(tensor.SerializeToString(deterministic=True)).digest()
        tensor.name = name
        if name not in outputs and first.setdefault(key, name) != name:
            renamed[name] = first[key]
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    without_unused(model)


def _shorten_names(model: onnx.ModelProto) -> None:
    graph = model.graph
    names: dict[str, str] = {"": ""} | {value.name: value.name for value in (*graph.input, *graph.output)}
    count = 0

    def short(name: str) -> str:
        nonlocal count
        while name not in names:
            candidate = _base62(count)
            count += 1
            if candidate not in names:
                names[name] = candidate
        return names[name]

    for node in graph.node:
        node.name = ""
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)


def _base62(number: int) -> str:
    """0, 1, ... Z, 10, 11 ..."""
    text = _DIGITS[number % 62]
    while number >= 62:
        number //= 62
        text = _DIGITS[number % 62] + text
    return text
