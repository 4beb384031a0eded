"""Read and edit an ``onnx_ir`` graph in place: constants, attributes, new nodes and unique names.

Values are objects with a producer and readers, so that nothing is indexed and nothing copied. Weights of a file beside
the graph stay mapped from it until somebody asks for their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

Array = NDArray[Any]


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or Constant node, of which shape and type are free; None where it is computed."""
    return None if value is None else ir.convenience.get_const_tensor(value)


def shape_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """A constant's shape."""
    return tuple(tensor.shape.numpy())


def constant(value: ir.Value | None) -> Array | None:
    """The numbers of an initializer or of a Constant node; None where ``value`` is computed or left out."""
    tensor = tensor_of(value)
    return None if tensor is None else tensor.numpy()


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value (sequences as tuples), or ``default``."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def optional_input(node: ir.Node, position: int) -> ir.Value | None:
    """An input, or None where it is left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def maker(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes ``value``, if it is one of ``op_types`` (no types: any)."""
    node = None if value is None else value.producer()
    return node if node is not None and (not op_types or node.op_type in op_types) else None


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node that alone reads ``value``, if it is an ``op_type`` and ``value`` is no output of the graph."""
    readers = value.consumers()
    if value.is_graph_output() or len(readers) != 1 or readers[0].op_type != op_type:
        return None
    return readers[0]


def reroute(value: ir.Value, new: ir.Value) -> None:
    """Let every node that reads ``value`` read ``new``; outputs of the graph stay."""
    for reader, position in value.uses():
        reader.replace_input_with(position, new)


def name_of(node: ir.Node) -> str:
    """The node's name, or that of its first output where it has none."""
    return node.name or node.outputs[0].name or ""


def name_of_input(node: ir.Node, position: int = 0) -> str:
    """The name of an input; empty where it is left out."""
    value = optional_input(node, position)
    return "" if value is None else str(value.name)


def values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Every input, constant and computed value."""
    found = {value.name: value for value in (*graph.inputs, *graph.initializers.values()) if value.name}
    return found | {value.name: value for node in graph for value in node.outputs if value.name}


def remove_unused(model: ir.Model) -> None:
    """Remove nodes and constants that no output needs."""
    RemoveUnusedNodesPass()(model)


def done(model: ir.Model) -> ir.passes.PassResult:
    """End an editing pass: remove the nodes and constants that it left unused."""
    remove_unused(model)
    return ir.passes.PassResult(model, True)


class Editor:
    """Adds nodes and constants to one graph under names that are free."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._names = set(values_by_name(graph))

    def fresh(self, wanted: str) -> str:
        """``wanted``, or with a number added where a value has that name already."""
        name, number = wanted, 1
        while name in self._names:
            name, number = f"{wanted}_{number}", number + 1
        self._names.add(name)
        return name

    def constant(self, name: str, array: Any) -> ir.Value:
        """A new initializer."""
        tensor = ir.tensor(np.asarray(array), name=self.fresh(name))
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape_of(tensor)), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def op(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        output: str,
        *,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """A new node in front of ``before``; its one output."""
        node = self._node(op_type, inputs, [ir.Value(name=self.fresh(output))], name, domain, attributes)
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def replace(
        self,
        old: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Node:
        """A new node in the place of ``old``, which has one output: readers and outputs of the graph follow."""
        node = self._node(op_type, inputs, [ir.Value()], old.name if name is None else name, domain, attributes)
        ir.convenience.replace_nodes_and_values(self.graph, old, [old], [node], [old.outputs[0]], node.outputs)
        return node

    def take_over(self, constant: ir.Value, computed: ir.Value) -> None:
        """Let ``computed`` stand for an initializer under its name: all its readers follow."""
        constant.replace_all_uses_with(computed, replace_graph_outputs=True)
        name = constant.name
        assert name is not None
        if constant.is_initializer():
            self.graph.initializers.pop(name)
        computed.name, computed.shape = name, constant.shape
        computed.type = constant.type

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
        name: str | None,
        domain: str,
        attributes: dict[str, Any],
    ) -> ir.Node:
        if domain:
            self.graph.opset_imports.setdefault(domain, 1)
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        return ir.node(op_type, given, attributes, domain=domain, outputs=outputs, name=name or outputs[0].name)
