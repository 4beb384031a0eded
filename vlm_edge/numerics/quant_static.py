"""A float graph and its calibration -> a Q/DQ graph: smoothing, places, ranges and biases, in this order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from vlm_edge.numerics.bias_correction import correct_biases
from vlm_edge.numerics.calibration import Calibration, Feeds, Statistics, collect
from vlm_edge.numerics.qdq_convolutions import place_convolutions
from vlm_edge.numerics.qdq_graph import Graph
from vlm_edge.numerics.qdq_lower import find_linears
from vlm_edge.numerics.qdq_place import place_linears, quantized_tensors, with_ranges
from vlm_edge.numerics.quant_forms import QuantForm
from vlm_edge.numerics.quant_smooth import smooth, smoothable
from vlm_edge.numerics.ranges import Range, RangeMethod, range_of


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

    floating: onnx.ModelProto
    quantized: onnx.ModelProto
    corrected: tuple[str, ...]


def static_graph(
    model: onnx.ModelProto, calibration: Calibration, held_out: Feeds, form: QuantForm, settings: StaticSettings
) -> StaticGraph:
    """Quantize with ranges from ``calibration``.

    Args:
        model: float32, every node named, all weights inside.
        held_out: what bias corrections are accepted on; at least one run.

    Raises:
        VlmEdgeError: there is no run, or NNCF can't quantize the graph.
    """
    floating, changed, kind = model, frozenset[str](), ""
    if settings.smooth:
        places = smoothable(model)
        tensors = [place.tensor for place in places]
        statistics = calibration.statistics(model, tensors, frozenset(tensors))
        floating, changed = smooth(model, places, {name: each.largest for name, each in statistics.items()})
        kind = "smooth:"
    if not form.symmetric:
        bits, left_out = form.weight_bits, settings.left_out
        placed = place_linears(floating, weight_bits=bits, left_out=left_out)
        placed = place_convolutions(placed, weight_bits=bits, outputs=form.kernels, left_out=left_out)
    else:
        from vlm_edge.numerics.quant_nncf import place

        placed = place(floating, held_out, form, settings.left_out)
    groups = quantized_tensors(placed)
    tensors = [name for group in groups for name in group]
    data = frozenset(linear.data for linear in find_linears(Graph(floating))).intersection(tensors)
    statistics = calibration.statistics(floating, [name for name in tensors if name not in changed], data)
    statistics |= calibration.statistics(floating, [name for name in tensors if name in changed], data, kind=kind)
    ranges = _ranges(groups, statistics, settings, symmetric=form.symmetric)
    ranged = with_ranges(placed, ranges, symmetric=form.symmetric)
    means = {name: statistics[name].mean for name in data if statistics[name].rows}
    seen = collect(floating, held_out, sorted(means), frozenset(means), 1) if means else {}
    quantized, corrected = correct_biases(
        floating, ranged, means, {name: each.mean for name, each in seen.items() if each.rows}
    )
    return StaticGraph(floating, quantized, tuple(corrected))


def _ranges(
    groups: list[list[str]], statistics: Statistics, settings: StaticSettings, *, symmetric: bool
) -> Mapping[str, Range]:
    """Every tensor's range; those of a group share one that holds all of theirs. A tensor that was always empty has
    none, and keeps what it was placed with."""
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
