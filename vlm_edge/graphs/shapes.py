"""Shapes and types of inner tensors, and the multiply-accumulates that follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass

from vlm_edge.graphs.edit import Editor, remove_unused, values_by_name
from vlm_edge.graphs.files import GraphSession, load_graph
from vlm_edge.graphs.ops import PRODUCTS, Call, Shape, UncountedOperator, multiplies

Feed = Mapping[str, NDArray[Any]]


class ShapeSession:
    """Runs a graph for the shapes of some of its tensors alone: none of their values is kept.

    Args:
        model: stays as it is.
        names: of the tensors; inputs and constants of the graph are allowed.
    """

    def __init__(self, model: ir.Model, names: Iterable[str]) -> None:
        listening = model.clone()
        graph, values = listening.graph, values_by_name(listening.graph)
        wanted = {name: values[name] for name in names}
        self._fixed = {
            name: tuple(value.const_value.shape.numpy())
            for name, value in wanted.items()
            if value.const_value is not None and not value.is_graph_input()
        }
        self._given = [name for name, value in wanted.items() if value.is_graph_input()]
        graph.outputs.clear()
        self._names: dict[str, str] = {}
        editor = Editor(graph)
        for name, value in wanted.items():
            producer = value.producer()
            if producer is not None:
                shape = ir.node("Shape", [value], outputs=[ir.Value(name=editor.fresh(f"{name}_shape"))])
                graph.insert_after(producer, shape)
                graph.outputs.append(shape.outputs[0])
                self._names[name] = str(shape.outputs[0].name)
        remove_unused(listening)
        self._inputs = [str(value.name) for value in graph.inputs]
        self._session = GraphSession(listening, level="disabled") if self._names else None

    def run(self, feed: Feed) -> dict[str, Shape]:
        """The shapes in one run."""
        shapes = self._fixed | {name: tuple(feed[name].shape) for name in self._given}
        if self._session is not None:
            found = self._session.run(self._names.values(), {name: feed[name] for name in self._inputs})
            shapes |= {name: tuple(int(size) for size in found[output]) for name, output in self._names.items()}
        return shapes


def multiply_adds(path: Path, feeds: Iterable[Feed]) -> int:
    """Multiply-accumulates of one graph file over several runs.

    Raises:
        UncountedOperator: an operator multiplies in a way that has no formula, or in the body of an If, Loop or Scan.
    """
    model = load_graph(path)
    if model.functions:
        InlinePass()(model)
    nodes = list(_products(model.graph))
    names = {value.name for node in nodes for value in (*node.inputs, node.outputs[0]) if value is not None}
    session = ShapeSession(model, sorted(str(name) for name in names))
    return sum(_macs(node, shapes) for shapes in map(session.run, feeds) for node in nodes)


def _products(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph.all_nodes():
        if not multiplies(node.op_type):
            continue
        if node.graph is not graph:
            raise UncountedOperator(f"{node.op_type} {node.name!r} is in the body of another operator")
        if node.op_type not in PRODUCTS or PRODUCTS[node.op_type].macs is None:
            raise UncountedOperator(f"{node.op_type} {node.name!r}")
        yield node


def _macs(node: ir.Node, shapes: Mapping[str, Shape]) -> int:
    inputs = tuple(None if value is None else shapes[str(value.name)] for value in node.inputs)
    attributes = {name: item.value for name, item in node.attributes.items()}
    count = PRODUCTS[node.op_type].macs
    assert count is not None
    return count(Call(inputs, shapes[str(node.outputs[0].name)], attributes, node.domain))


def element_types(model: ir.Model) -> dict[str, ir.DataType]:
    """The element type of every tensor that ONNX can infer, by its name; without the constants' values."""
    bare = model.clone()
    for value in list(bare.graph.initializers.values()):
        bare.graph.initializers.pop(str(value.name))
        if not value.is_graph_input():
            bare.graph.inputs.append(value)
        if value.const_value is not None:
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape.numpy())
        value.const_value = None
    for value in (value for node in bare.graph for value in node.outputs if not value.is_graph_output()):
        value.type = value.shape = None
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(bare)).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    return {value.name: ir.DataType(value.type.tensor_type.elem_type) for value in values}
