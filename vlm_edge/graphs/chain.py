"""Parts of a graph: a chain of onnxruntime sessions, so that a run can start behind what hasn't changed since the last
one, and the shortest part that stands for all of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.edit import remove_unused, values_by_name
from vlm_edge.graphs.files import GraphSession, weight_bytes

Values = Mapping[str, NDArray[Any]]

PARTS = 12
"""A layer is ranked on the part that holds it and those behind it, half of the work; and a twelfth of a graph's values
are in memory together."""
PART_BYTES = 24 * 2**20
"""Weights of a part that is made to see inner values: a session takes longer to build than a small part to run."""
MOST_CROSSING = 8
"""Values that may cross a cut: a transformer's residual stream, its mask, rotary angles."""
SAMPLED = 2
"""Values of each kind in a part that stands for the whole graph: two blocks of a transformer."""


@dataclass
class _Link:
    part: ir.Model
    inputs: frozenset[str]
    outputs: tuple[str, ...]
    session: GraphSession | None = None


class GraphChain:
    """Sessions of consecutive parts of a graph, cut where few values cross.

    Args:
        model: its nodes in topological order; stays as it is.
        near: names of values; the cuts lie where they divide the nodes that make these into parts of about one size.
        parts: at most so many; one where the graph has no narrow place, or control flow.
        threads: of each session.
        outputs: names of the computed values to give, in place of the graph's own outputs.
    """

    def __init__(
        self, model: ir.Model, near: Collection[str], parts: int, threads: int, outputs: Collection[str] = ()
    ) -> None:
        self._threads = threads
        self._links: list[_Link] = []
        if outputs:
            model = model.clone()
            values = values_by_name(model.graph)
            model.graph.outputs[:] = [values[name] for name in outputs]
            remove_unused(model)
        nodes = list(model.graph)
        crossing = _crossing(nodes)
        cuts = _cuts([len(each) for each in crossing], nodes, near, parts) if _can_be_cut(model) else []
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
        for made in self.run_parts(feed, known, start):
            found |= made
        return found

    def run_parts(self, feed: Values, known: Values | None = None, start: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
        """The same part by part: what each makes of the outputs and of what crosses, so that not all is in memory."""
        crossing = dict(known or {})
        for at, link in enumerate(self._links[start:], start):
            inputs = {name: feed[name] if name in feed else crossing[name] for name in link.inputs}
            if link.session is None:
                for value in link.part.graph.inputs:  # the type of one that crosses a cut is known from its numbers
                    value.type = value.type or ir.TensorType(ir.DataType.from_numpy(inputs[str(value.name)].dtype))
                link.session = GraphSession(link.part, threads=self._threads)
            made = link.session.run(link.outputs, inputs)
            later = frozenset().union(*(link.inputs for link in self._links[at + 1 :]))
            crossing = {name: value for name, value in (crossing | made).items() if name in later}
            yield made


def listening(model: ir.Model, names: Collection[str], threads: int) -> GraphChain:
    """A chain that gives these computed values."""
    parts = min(PARTS, 1 + weight_bytes(model) // PART_BYTES)
    return GraphChain(model, names, parts, threads, names)


def sample_of(model: ir.Model, groups: Sequence[Collection[str]]) -> ir.Model | None:
    """The shortest part that makes :data:`SAMPLED` values of every group, cut where fewest values cross.

    None where that is more than half of the graph, or nothing can be cut.

    Args:
        groups: names of values that are made alike.
    """
    nodes, number_of = list(model.graph), {name: number for number, group in enumerate(groups) for name in group}
    numbers = [number_of.get(str(node.outputs[0].name), -1) for node in nodes]
    counts = Counter(number for number in numbers if number >= 0)
    if not counts or not _can_be_cut(model):
        return None
    most = max(counts, key=lambda number: counts[number])
    marks = [at for at, number in enumerate(numbers) if number == most]
    crossing, inner = _crossing(nodes), range(marks[0] + 1, marks[-1] + 1)
    least = min((len(crossing[at]) for at in inner), default=0)
    places = [0, *(at for at in inner if len(crossing[at]) == least), len(nodes)]
    spans = [(0, len(nodes))]
    for start, end in itertools.combinations(places, 2):
        made = Counter(numbers[start:end])
        if all(made[number] >= min(SAMPLED, count) for number, count in counts.items()):
            spans.append((start, end))
    start, end = min(spans, key=lambda span: span[1] - span[0])
    return None if end - start > len(nodes) / 2 else _part(model, nodes[start:end], crossing[start], crossing[end])


def feeds_of(part: ir.Model, model: ir.Model, feeds: Sequence[Values]) -> list[dict[str, NDArray[Any]]]:
    """The values that enter a part of ``model`` in its runs on ``feeds``; the part's inputs get types."""
    names = [str(value.name) for value in part.graph.inputs]
    session = GraphSession(model, names)
    found = [dict(feed) | session.run([name for name in names if name not in feed], feed) for feed in feeds]
    for value in part.graph.inputs:
        value.type = value.type or ir.TensorType(ir.DataType.from_numpy(found[0][str(value.name)].dtype))
    return [{name: values[name] for name in names} for values in found]


def _part(model: ir.Model, nodes: Sequence[ir.Node], before: list[ir.Value], behind: list[ir.Value]) -> ir.Model:
    """These nodes as a model: from the graph's inputs and what crosses into them, to its outputs and what leaves."""
    made = {value for node in nodes for value in node.outputs}
    read = {value for node in nodes for value in node.inputs}
    entering = [value for value in (*before, *model.graph.inputs) if value in read]
    leaving = dict.fromkeys(value for value in (*behind, *model.graph.outputs) if value in made)
    graph = ir.convenience.extract(model.graph, entering, list(leaving))
    return ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values()))


def _can_be_cut(model: ir.Model) -> bool:
    """False where an output is no node's, or a node has a graph of its own."""
    nested = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    inner = any(each.type in nested for node in model.graph for each in node.attributes.values())
    return not inner and all(value.producer() for value in model.graph.outputs)


def _crossing(nodes: Sequence[ir.Node]) -> list[list[ir.Value]]:
    """For every place between two nodes, the values made before it and read behind it; the outer places have none."""
    last_reader = {value: at for at, node in enumerate(nodes) for value in node.inputs if value is not None}
    crossing: list[list[ir.Value]] = [[]]
    for at, node in enumerate(nodes):
        crossing.append([value for value in (*crossing[-1], *node.outputs) if last_reader.get(value, -1) > at])
    return crossing


def _cuts(widths: Sequence[int], nodes: Sequence[ir.Node], near: Collection[str], parts: int) -> list[int]:
    """Places that fewest values cross, one for each part but the first, about where that part should begin."""
    marks = [at for at, node in enumerate(nodes) if any(value.name in near for value in node.outputs)]
    if not marks:
        return []
    cuts, parts = [0], min(parts, len(marks))
    for part in range(1, parts):
        low, high = (marks[min(len(marks) - 1, int((part + side) * len(marks) / parts))] for side in (-0.5, 0.5))
        cut = min(range(max(low, cuts[-1] + 1), high + 1), key=lambda place: widths[place], default=0)
        if cut and widths[cut] <= MOST_CROSSING:
            cuts.append(cut)
    return cuts[1:]
