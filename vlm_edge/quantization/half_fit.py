"""Find the nodes of a float graph that can't be computed in 16 bits, by running it.

Every node runs twice on each input: as it is, and with the tensors that it reads rounded to 16 bits. A tensor near the
largest 16-bit number, and a node that makes much more of the rounding than the rounding itself, stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vlm_edge.graphs.edit import Editor, attribute, maker, tensor_of
from vlm_edge.graphs.files import GraphSession
from vlm_edge.graphs.ops import HEAVY_OPERATORS, OPEN_SUMS, SHAPE_OPERATORS
from vlm_edge.graphs.passes.half_precision import FLOAT, LARGEST, ROUNDING, half_inputs
from vlm_edge.graphs.shapes import element_types
from vlm_edge.quantization.calibration import Feed

HEADROOM = 8.0
"""On a device a tensor may be so many times larger than on the samples."""
TOLERANCE = 8.0
"""Roundings (2^-11 in float16, 2^-8 in bfloat16) that a node's largest error may be of its largest output: a product
makes 1 to 3 of them, the cosine of an angle of 20 makes 8."""
MOVES = SHAPE_OPERATORS | {"Concat", "Pad", "Tile", "DepthToSpace", "SpaceToDepth"}
"""Operators whose outputs hold values of their inputs."""


@dataclass
class Ran:
    """Of a node over all runs: the largest magnitude of what it reads and writes, that of its output, and the output's
    largest change when what it reads is rounded."""

    largest: float = 0.0
    output: float = 0.0
    change: float = 0.0


class HalfFit:
    """The errors of a float32 graph's nodes in 16 bits; ``kept`` names those that stay float32.

    Args:
        model: every node named; it stays as it is.
        dtype: the 16-bit type.
        feeds: at least one run.
        threads: of onnxruntime.
    """

    def __init__(self, model: ir.Model, dtype: ir.DataType, feeds: Iterable[Feed], threads: int = 1) -> None:
        self._graph = model.graph
        self._dtype = dtype
        self._floats = {name for name, each in element_types(model).items() if each == FLOAT}
        watched = model.clone()
        watch = _Watch(watched, dtype, self._floats)
        session = GraphSession(watched, watch.names(), threads=threads, level="disabled")
        self.nodes = {name: Ran() for name in watch.nodes}
        for feed in feeds:
            found = {name: float(value) for name, value in session.run(watch.names(), feed).items()} | watch.fixed
            for name, (read, output, change) in watch.nodes.items():
                ran = self.nodes[name]
                ran.largest = max(ran.largest, *(found[each] for each in read), found[output])
                ran.output = max(ran.output, found[output])
                ran.change = max(ran.change, found[change] if change else 0.0)

    def kept(self, tolerance: float = TOLERANCE) -> dict[str, str]:
        """The nodes that stay float32, each with the reason.

        ``range``: a number is too large. ``rounding``: the node magnifies what rounding does to its inputs, so that
        what makes them stays float32, too. ``integers``: it is computed from integers alone (positions, masks, rotary
        angles). ``sum``: it adds up many values, in a precision that ONNX leaves open. ``output``: it makes an output
        of the graph. ``between``: it multiplies no matrices, and all that it reads is float32.
        """
        limit, most = LARGEST[self._dtype] / HEADROOM, tolerance * ROUNDING[self._dtype]
        exact, kept = self._from_integers(), dict[str, str]()
        for node in self._graph:
            ran, name = self.nodes.get(str(node.name)), str(node.name)
            if node in exact:
                kept[name] = "integers"
            elif ran is None:
                continue
            elif ran.largest > limit:
                kept[name] = "range"
            elif ran.change > most * ran.output:
                kept |= {each: kept.get(each, "rounding") for each in (name, *self._makers(node))}
            elif node.op_type in OPEN_SUMS or attribute(node, "stash_type", 1) != 1:
                kept.setdefault(name, "sum")
        for output in self._graph.outputs:
            node_of_output = maker(output)
            if node_of_output is not None and node_of_output.op_type not in MOVES:
                kept.setdefault(str(node_of_output.name), "output")
        for node in self._graph:
            if str(node.name) not in kept and str(node.name) in self.nodes and node.op_type not in HEAVY_OPERATORS:
                made = [maker(value) for value in self._computed(node)]
                if made and all(each is not None and str(each.name) in kept for each in made):
                    kept[str(node.name)] = "between"
        return kept

    def _computed(self, node: ir.Node) -> list[ir.Value]:
        """The float tensors that a node reads, but for constants."""
        return [value for value in node.inputs if value is not None and self._is_computed(value)]

    def _is_computed(self, value: ir.Value) -> bool:
        return value.name in self._floats and tensor_of(value) is None

    def _makers(self, node: ir.Node) -> Iterator[str]:
        """The nodes that compute what ``node`` reads; those that move elements, and what is before them."""
        for value in self._computed(node):
            made = maker(value)
            if made is not None:
                yield str(made.name)
                if made.op_type in MOVES:
                    yield from self._makers(made)

    def _from_integers(self) -> set[ir.Node]:
        """Nodes that make float tensors of integers alone, without reading a table of weights."""
        found: set[ir.Node] = set()
        for node in self._graph:
            if node.outputs[0].name not in self._floats or tensor_of(node.outputs[0]) is not None:
                continue
            read = [value for value in node.inputs if value is not None and value.name in self._floats]
            computed = [maker(value) for value in self._computed(node)]
            if not read or (computed and all(each in found for each in computed)):
                found.add(node)
        return found


class _Watch:
    """Nodes added to a graph that give, in each run, a number for each of its tensors and nodes.

    nodes: by name, the numbers that :class:`Ran` is made of: magnitudes of what is read, and of the output, and the
        output's change ("" where values only move).
    fixed: the numbers that are the same in every run.
    """

    def __init__(self, model: ir.Model, dtype: ir.DataType, floats: set[str]) -> None:
        self.nodes: dict[str, tuple[list[str], str, str]] = {}
        self.fixed: dict[str, float] = {}
        self._editor = Editor(model.graph)
        self._dtype = dtype
        self._zero = self._editor.constant("zero", np.zeros(1, np.float32))
        self._flat = self._editor.constant("flat", np.array([-1]))
        self._made: dict[tuple[str, ir.Value], ir.Value] = {}
        for node in list(model.graph):
            self._last = node
            places = half_inputs(node, dtype, model, floats)
            if not places or node.outputs[0].name not in floats:
                continue
            read = [self._largest(value) for value in places.values()]
            output, change = self._largest(node.outputs[0]), ""
            if node.op_type not in MOVES:
                inputs = list(node.inputs)
                for place, value in places.items():
                    inputs[place] = self._rounded(value)
                attributes = list(node.attributes.values())
                outputs = [ir.Value(name=self._editor.fresh(f"{value.name}_again")) for value in node.outputs]
                self._insert(ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs))
                change = self._largest(self._op("Sub", outputs[0], node.outputs[0]))
            self.nodes[str(node.name)] = read, output, change

    def names(self) -> list[str]:
        """The numbers that a run gives."""
        return [str(value.name) for (kind, _), value in self._made.items() if kind == "largest"]

    def _largest(self, value: ir.Value) -> str:
        tensor = tensor_of(value)
        if tensor is not None:
            name = str(value.name)
            if name not in self.fixed:
                self.fixed[name] = float(np.abs(tensor.numpy()).max(initial=0.0))
            return name
        if ("largest", value) not in self._made:
            values = self._op("Concat", self._op("Reshape", self._op("Abs", value), self._flat), self._zero, axis=0)
            self._made["largest", value] = self._op("ReduceMax", values, keepdims=0)
        return str(self._made["largest", value].name)

    def _rounded(self, value: ir.Value) -> ir.Value:
        if ("rounded", value) not in self._made:
            self._made["rounded", value] = self._op("Cast", self._op("Cast", value, to=int(self._dtype)), to=int(FLOAT))
        return self._made["rounded", value]

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        output = ir.Value(name=self._editor.fresh(f"{inputs[0].name}_{op_type.lower()}"))
        self._insert(ir.node(op_type, inputs, attributes, outputs=[output]))
        return output

    def _insert(self, node: ir.Node) -> None:
        """Behind the last one."""
        self._editor.graph.insert_after(self._last, node)
        self._last = node
