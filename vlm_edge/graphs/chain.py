"""A graph as a chain of onnxruntime sessions, so that a run can start behind what hasn't changed since the last one."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.files import GraphSession

Values = Mapping[str, NDArray[Any]]

MOST_CROSSING = 8
"""Values that may cross a cut: a transformer's residual stream, its mask, rotary angles."""


@dataclass
class _Link:
    part: ir.Model
    inputs: frozenset[str]
    outputs: tuple[str, ...]
    session: GraphSession | None = None


class GraphChain:
    """Sessions of consecutive parts of a graph, cut where few values cross.

    Args:
        model: its nodes in topological order.
        near: node names; the cuts lie where they divide these nodes into parts of about one size.
        parts: at most so many; one where the graph has no narrow place, or control flow.
        threads: of each session.
    """

    def __init__(self, model: ir.Model, near: Collection[str], parts: int, threads: int) -> None:
        self._threads = threads
        self._links: list[_Link] = []
        nodes, made_by_nodes = list(model.graph), all(value.producer() for value in model.graph.outputs)
        crossing = _crossing(nodes)
        cuts = _cuts([len(each) for each in crossing], nodes, near, parts) if made_by_nodes else []
        for start, end in itertools.pairwise([0, *cuts, len(nodes)]):
            part = _part(model, nodes[start:end], crossing[start], crossing[end]) if cuts else model
            inputs = frozenset(str(value.name) for value in part.graph.inputs)
            self._links.append(_Link(part, inputs, tuple(str(value.name) for value in part.graph.outputs)))

    def __len__(self) -> int:
        return len(self._links)

    def first_reader(self, names: Collection[str]) -> int:
        """The first part that reads one of these inputs; the number of parts where none does."""
        return next((at for at, link in enumerate(self._links) if not link.inputs.isdisjoint(names)), len(self._links))

    def run(self, feed: Values, known: Values | None = None, start: int = 0) -> dict[str, NDArray[Any]]:
        """The graph's outputs, and every value that crosses a cut.

        Args:
            feed: the graph's inputs by name.
            known: an earlier run's result; needed where ``start`` isn't 0.
            start: the first part that is run; the values made before it are the known ones.
        """
        found = dict(known or {})
        for link in self._links[start:]:
            inputs = {name: feed[name] if name in feed else found[name] for name in link.inputs}
            if link.session is None:
                for value in link.part.graph.inputs:  # the type of one that crosses a cut is known from its numbers
                    value.type = value.type or ir.TensorType(ir.DataType.from_numpy(inputs[str(value.name)].dtype))
                link.session = GraphSession(link.part, threads=self._threads)
            found |= link.session.run(link.outputs, inputs)
        return found


def _part(model: ir.Model, nodes: Sequence[ir.Node], before: list[ir.Value], behind: list[ir.Value]) -> ir.Model:
    """These nodes as a model: from the graph's inputs and what crosses into them, to its outputs and what leaves."""
    made = {value for node in nodes for value in node.outputs}
    read = {value for node in nodes for value in node.inputs}
    entering = [value for value in (*before, *model.graph.inputs) if value in read]
    leaving = dict.fromkeys(value for value in (*behind, *model.graph.outputs) if value in made)
    graph = ir.convenience.extract(model.graph, entering, list(leaving))
    return ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values()))


def _crossing(nodes: Sequence[ir.Node]) -> list[list[ir.Value]]:
    """For every place between two nodes, the values made before it and read behind it; the outer places have none."""
    last_reader = {value: at for at, node in enumerate(nodes) for value in node.inputs if value is not None}
    crossing: list[list[ir.Value]] = [[]]
    for at, node in enumerate(nodes):
        crossing.append([value for value in (*crossing[-1], *node.outputs) if last_reader.get(value, -1) > at])
    return crossing


def _cuts(widths: Sequence[int], nodes: Sequence[ir.Node], near: Collection[str], parts: int) -> list[int]:
    """Places that fewest values cross, one for each part but the first, about where that part should begin."""
    marks = [at for at, node in enumerate(nodes) if str(node.name) in near]
    nested = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    if not marks or any(each.type in nested for node in nodes for each in node.attributes.values()):
        return []
    cuts, parts = [0], min(parts, len(marks))
    for part in range(1, parts):
        low, high = (marks[min(len(marks) - 1, int((part + side) * len(marks) / parts))] for side in (-0.5, 0.5))
        cut = min(range(max(low, cuts[-1] + 1), high + 1), key=lambda place: widths[place], default=0)
        if cut and widths[cut] <= MOST_CROSSING:
            cuts.append(cut)
    return cuts[1:]
