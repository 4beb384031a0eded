"""Search for the fastest form of each integer layer on this host, by racing engines.

A quantized graph isn't faster because it is quantized: it depends on the layer's shape, the engine and the CPU. So
layers of one kind and shape are tried in their other forms, the most work first, and what wins a race is kept. A
candidate has to be faster by :data:`MARGIN`, so that noise doesn't decide; layers that are left over stay as they are.
What was found is held against float arithmetic once more by the clock, with all the threads that the engine will have:
an operator may take less CPU time and yet keep the others waiting.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from vlm_edge.backends.base import Engine, Feed
from vlm_edge.backends.compiling import MARGIN, race
from vlm_edge.graphs.ops import Shape
from vlm_edge.graphs.passes.integer_forms import ChangeForms, Form, IntegerLayer

SMALLEST_SHARE = 0.02
"""Layers of one shape with a smaller share of the integer layers' multiply-adds are not tried by themselves."""
CLOCK_MARGIN = 0.05
"""Float arithmetic is taken where it is faster by more by the clock, which tells less than CPU time does."""
Load = Callable[[ir.Model], Engine]


@dataclass
class Tuner:
    """Searches the forms of one graph's integer layers.

    ``groups`` are those of ``layers`` that are tried by themselves; see :func:`alike`. ``model`` is raced on ``feeds``:
    the graph, or a part of it with some layers of every group. ``load`` makes an engine of one thread of it; the search
    ends after ``seconds``. ``load_threaded`` makes one of as many threads as the component will have, where they are
    several.
    """

    layers: Sequence[IntegerLayer]
    groups: Sequence[Sequence[IntegerLayer]]
    model: ir.Model
    feeds: Sequence[Feed]
    load: Load
    seconds: float
    load_threaded: Load | None = None
    forms: dict[str, Form] = field(default_factory=dict)
    races: int = 0
    _best: Engine | None = None
    _began: float = 0.0
    _gains: float = 1.0
    _ratios: dict[frozenset[tuple[str, Form]], float] = field(default_factory=dict)
    """Of graphs that lost to the best one."""

    def run(self) -> dict[str, Any]:
        """Fill ``forms`` with the fastest found; facts: layers by form, and how much faster it is than as it was."""
        self._began = time.monotonic()
        self.forms = {layer.node: layer.forms[0] for layer in self.layers}
        self._best = self.load(self.model)
        for wanted in _starts(self.layers):
            self._try(wanted)
        tried = 0
        for group in self.groups:
            if time.monotonic() - self._began > self.seconds:
                break
            tried += 1
            for form in group[0].forms:
                if form != self.forms[group[0].node]:
                    self._try({layer.node: form for layer in group})
        facts = self._against_float()
        calibrated = {layer.node for layer in self.layers if layer.forms[0] == "static"}
        if uncalibrated := sum(self.forms[node] == "dynamic" for node in calibrated):
            facts |= {"uncalibrated_layers": uncalibrated, "uncalibrated": UNCALIBRATED}
        return facts | {
            "layers": dict(sorted(Counter(self.forms.values()).items())),
            "faster_than_untuned": round(self._gains, 3),
            "races": self.races,
            "shapes_not_tried": len(self.groups) - tried,
        }

    def _try(self, changes: dict[str, Form]) -> None:
        """Race the best graph with ``changes`` against it, and keep what wins."""
        forms = self.forms | changes
        if forms == self.forms:
            return
        ratio, candidate = self._ratio(forms)
        if candidate is not None and ratio < 1 - MARGIN:
            self.forms, self._best = forms, candidate
            self._gains /= ratio
            self._ratios.clear()

    def _ratio(self, forms: dict[str, Form]) -> tuple[float, Engine | None]:
        """The time of the graph in these forms over the best one's, and its engine if it was raced only now."""
        key = frozenset(forms.items())
        if key in self._ratios:
            return self._ratios[key], None
        candidate = self.load(self._graph(forms))
        assert self._best is not None
        best, other = race((self._best, candidate), self.feeds)
        self.races += 1
        self._ratios[key] = other / best
        return self._ratios[key], candidate

    def _against_float(self) -> dict[str, Any]:
        """Race the best graph against the same graph in float, and take the float one where it is faster; facts."""
        floating: dict[str, Form] = {layer.node: "float" for layer in self.layers}
        if self.forms == floating:
            return {"faster_than_float": 1.0, "reverted": REVERTED}
        ratio = round(self._ratio(floating)[0], 3)
        if ratio < 1:
            self.forms = floating
            self._gains /= ratio
            return {"faster_than_float": 1.0, "reverted": REVERTED}
        facts = {"faster_than_float": ratio}
        self._best = None  # before the next two engines are loaded
        return facts if self.load_threaded is None else facts | self._by_clock(self.load_threaded, floating)

    def _by_clock(self, load: Load, floating: dict[str, Form]) -> dict[str, Any]:
        """The same by the clock, with all threads."""
        engines = [load(self._graph(forms)) for forms in (self.forms, floating)]
        best, other = race(engines, self.feeds, by_clock=True)
        self.races += 1
        if other < best * (1 - CLOCK_MARGIN):
            self.forms = floating
            return {"faster_than_float": 1.0, "reverted": REVERTED_BY_CLOCK}
        return {"faster_than_float_by_clock": round(other / best, 3)}

    def _graph(self, forms: dict[str, Form]) -> ir.Model:
        candidate = self.model.clone()
        ChangeForms(forms)(candidate)
        return candidate


REVERTED = "no integer form was faster than float arithmetic here; the weights stay int8 on disk"
UNCALIBRATED = (
    "onnxruntime's DynamicQuantizeMatMul was faster for layers that were calibrated: it takes the range of the data in "
    "each run, over the whole batch, so that an answer may depend on the batch that it is in"
)
REVERTED_BY_CLOCK = (
    "with all threads float arithmetic was faster by the clock, though not in CPU time; the weights stay int8 on disk"
)


def alike(layers: Sequence[IntegerLayer], shapes: Mapping[str, Shape]) -> list[list[IntegerLayer]]:
    """Layers of one kind and shape together, the most multiply-adds first; small ones left out.

    Args:
        shapes: of the layers' outputs in a run.
    """
    groups: dict[Any, list[IntegerLayer]] = {}
    for layer in layers:
        groups.setdefault((layer.op_type, layer.weight, shapes[layer.output]), []).append(layer)
    work = {key: len(group) * _multiply_adds(group[0], key[2]) for key, group in groups.items()}
    least = SMALLEST_SHARE * sum(work.values())
    return [groups[key] for key in sorted(work, key=lambda key: -work[key]) if work[key] >= least]


def _starts(layers: Sequence[IntegerLayer]) -> list[dict[str, Form]]:
    """Changes that are tried for all layers at once: float convolutions, linear layers by run, all in float."""
    convolutions: dict[str, Form] = {layer.node: "float" for layer in layers if layer.op_type == "QLinearConv"}
    dynamic: dict[str, Form] = {layer.node: "dynamic" for layer in layers if "dynamic" in layer.forms}
    floating: dict[str, Form] = {layer.node: "float" for layer in layers}
    return [changes for changes in (convolutions, dynamic, floating) if changes]


def _multiply_adds(layer: IntegerLayer, output: tuple[int, ...]) -> int:
    added = math.prod(layer.weight[1:]) if layer.op_type == "QLinearConv" else layer.weight[0]
    return math.prod(output) * added
