"""What the quantization steps share: an ONNX graph with its edges indexed, and its cleaning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

MICROSOFT = "com.microsoft"
"""The operator set of onnxruntime's own kernels."""

LARGEST_FILE_BYTES = 1_900_000_000
"""Weights above this go beside the graph: a protobuf message ends at 2 GiB."""

SHAPE_OPERATORS = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather", "Split", "Expand"}
)
"""Operators whose outputs hold values of their first input and nothing else."""


class Graph:
    """A model's main graph, indexed. The index is that of the moment: build another one after an edit."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self._positions = {id(node): position for position, node in enumerate(self.nodes)}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.producers.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.consumers[name].append(node)

    def position(self, node: onnx.NodeProto) -> int:
        """Where one of ``nodes`` stands in the list."""
        return self._positions[id(node)]

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of an initializer or of a Constant node, or None where ``name`` is computed."""
        tensor = self.initializers.get(name)
        node = self.producers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
        if tensor is None:
            return None
        value: NDArray[Any] = numpy_helper.to_array(tensor)
        return value

    def only_consumer(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The node that alone reads ``name``, if it is an ``op_type`` and ``name`` is no output of the graph."""
        readers = self.consumers[name]
        if name in self.outputs or len(readers) != 1 or readers[0].op_type != op_type:
            return None
        return readers[0]


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, or ``default``."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that shares nothing with ``model``."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def edited(
    model: onnx.ModelProto,
    replacements: Mapping[int, Sequence[onnx.NodeProto]],
    constants: Mapping[str, NDArray[Any]],
    *,
    renamed: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """A copy of ``model`` in which node ``i`` is replaced by ``replacements[i]``, and constants are added.

    Args:
        replacements: positions in the node list; an empty sequence removes the node.
        constants: new initializers; a name that is there already is replaced.
        renamed: tensor names that readers find under another name from now on. Outputs of the graph keep theirs.
    """
    result = copied(model)
    renamed = renamed or {}
    del result.graph.node[:]
    for position, node in enumerate(model.graph.node):
        for new in replacements.get(position, (node,)):
            result.graph.node.append(new)
            inputs = result.graph.node[-1].input
            inputs[:] = [renamed.get(name, name) for name in inputs]
    initializers = [tensor for tensor in result.graph.initializer if tensor.name not in constants]
    initializers += [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    _set_initializers(result, initializers)
    if any(node.domain == MICROSOFT for node in result.graph.node):
        _import_operators(result, MICROSOFT)
    return without_unused(result)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write ``path``, and ``path.data`` with the weights where one file can't hold them; the same bytes every time."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < LARGEST_FILE_BYTES:
        path.write_bytes(model.SerializeToString(deterministic=True))
    else:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)


def without_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, changed in place: nodes and initializers that no output needs are gone, and stale shapes with them."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_reads(node))
            kept.append(node)
    if len(kept) != len(graph.node):
        nodes = [_detached(node) for node in reversed(kept)]
        del graph.node[:]
        graph.node.extend(nodes)
    if any(tensor.name not in needed for tensor in graph.initializer):
        _set_initializers(model, [tensor for tensor in graph.initializer if tensor.name in needed])
    made = {name for node in graph.node for name in node.output}
    shapes = [value for value in graph.value_info if value.name in made]
    if len(shapes) != len(graph.value_info):
        shapes = [_detached(value) for value in shapes]
        del graph.value_info[:]
        graph.value_info.extend(shapes)
    return model


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without doc strings, metadata and inner shapes: they take space, and may hold paths of the exporter."""
    result = copied(model)
    for holder in (result, result.graph, *result.graph.node, *result.graph.input, *result.graph.output):
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")
    for tensor in result.graph.initializer:
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    result.graph.ClearField("value_info")
    return result


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    """Names that a node reads, those of its inner graphs with them."""
    yield from node.input
    for item in node.attribute:
        for inner in (item.g, *item.graphs):
            for inner_node in inner.node:
                yield from _reads(inner_node)
            yield from (value.name for value in inner.output)


def _set_initializers(model: onnx.ModelProto, tensors: Sequence[onnx.TensorProto]) -> None:
    kept = [_detached(tensor) for tensor in tensors]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _detached(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _import_operators(model: onnx.ModelProto, domain: str) -> None:
    if all(entry.domain != domain for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
