"""Index the edges of an ONNX graph as onnxruntime wrote it, without its weights."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


class Graph:
    """A model's main graph, indexed. The index is that of the moment: build another one after an edit."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.producers.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.consumers[name].append(node)

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


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, or ``default``."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default
