"""Quantize a float graph from its calibration: smoothing, pairs, ranges and biases, in this order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from vlm_edge.graphs.match import find_linears
from vlm_edge.graphs.passes.correct_biases import correct_biases
from vlm_edge.graphs.passes.place_pairs import SetRanges, quantized_tensors
from vlm_edge.graphs.passes.smooth import smooth, smoothable
from vlm_edge.quantization.calibration import Calibration, Feeds, Statistics, collect
from vlm_edge.quantizers.ranges import Range, RangeMethod, range_of


class PairPlacer(Protocol):
    """The part of an engine's lowering that places Q/DQ pairs; see :class:`vlm_edge.backends.lowering.Lowering`."""

    @property
    def symmetric(self) -> bool: ...

    def place(self, model: ir.Model, held_out: Feeds, left_out: frozenset[str]) -> ir.Model: ...


@dataclass(frozen=True)
class StaticSettings:
    """``left_out``: names of nodes that stay float. ``percentile``: for the method of that name."""

    ranges: RangeMethod = "minmax"
    percentile: float = 99.99
    smooth: bool = False
    left_out: frozenset[str] = frozenset()


@dataclass(frozen=True)
class StaticGraph:
    """``floating``: what was quantized, after smoothing. ``quantized``: with Q/DQ pairs, not yet in a target's form.
    ``corrected``: names of the nodes whose biases were corrected."""

    floating: ir.Model
    quantized: ir.Model
    corrected: tuple[str, ...]


def static_graph(
    model: ir.Model, calibration: Calibration, held_out: Feeds, engine: PairPlacer, settings: StaticSettings
) -> StaticGraph:
    """Quantize with ranges from ``calibration``.

    Args:
        model: float32, every node named.
        held_out: what bias corrections are accepted on; at least one run.

    Raises:
        VlmEdgeError: there is no run, or the engine's pairs can't be placed.
    """
    floating, changed, kind = model, frozenset[str](), ""
    if settings.smooth:
        tensors = [place.tensor for place in smoothable(model)]
        statistics = calibration.statistics(model, tensors, frozenset(tensors))
        floating = model.clone()
        changed = smooth(floating, {name: each.largest for name, each in statistics.items()})
        kind = "smooth:"
    quantized = engine.place(floating.clone(), held_out, settings.left_out)
    groups = quantized_tensors(quantized)
    tensors = [name for group in groups for name in group]
    data = frozenset(str(linear.data.name) for linear in find_linears(floating.graph)).intersection(tensors)
    statistics = calibration.statistics(floating, [name for name in tensors if name not in changed], data)
    statistics |= calibration.statistics(floating, [name for name in tensors if name in changed], data, kind=kind)
    SetRanges(_ranges(groups, statistics, settings, symmetric=engine.symmetric), engine.symmetric)(quantized)
    means = {name: statistics[name].mean for name in data if statistics[name].rows}
    seen = collect(floating, held_out, sorted(means), frozenset(means), 1) if means else {}
    corrected = correct_biases(
        floating, quantized, means, {name: each.mean for name, each in seen.items() if each.rows}
    )
    return StaticGraph(floating, quantized, tuple(corrected))


def _ranges(
    groups: list[list[str]], statistics: Statistics, settings: StaticSettings, *, symmetric: bool
) -> Mapping[str, Range]:
    """Every tensor's range; those of a group share one that holds all of theirs. A tensor that was always empty has
    none, and keeps the range that its pair was placed with."""
    ranges: dict[str, Range] = {}
    for group in groups:
        found = [
            range_of(statistics[name].histogram, settings.ranges, percentile=settings.percentile, symmetric=symmetric)
            for name in group
            if statistics[name].histogram.counts.any()
        ]
        if found:
            ranges |= dict.fromkeys(group, (min(low for low, _ in found), max(high for _, high in found)))
    return ranges
