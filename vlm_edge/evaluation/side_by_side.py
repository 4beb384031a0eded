"""Differences between two runs, metric by metric: paired where the outcomes allow it, else marked as unpaired.

Task metrics are compared sample by sample through the outcomes files when both runs were evaluated on the same data.
Latencies go through the speed-ups over one baseline engine on hosts of one kind. Everything else is taken from the two
records as if independent; what can't be compared gets a reason.
"""

from __future__ import annotations

import math

from vlm_edge.core.difference import Difference
from vlm_edge.core.measurement import Measurement
from vlm_edge.evaluation.change import Side, change_between, other_conditions, paired, quotient
from vlm_edge.evaluation.paired_metrics import measurement, suffixed
from vlm_edge.statistics.intervals import Interval

PERCENTILES = ("p50", "p90", "p99")
_HOST_BOUND = ("latency_", "cold_start_ms", "throughput_per_s", "cost_per_1000", "peak_rss_mb")
_RATIOS = (*_HOST_BOUND, "size_bytes", "parameters", "macs")
_DERIVED = ("_drop_pt", "_ratio", "_speedup", "_control")


def differences(before: Side, after: Side) -> dict[str, Difference]:
    """Differences of ``after`` from ``before`` by metric, for every metric that both have and that can differ."""
    earlier = {found.metric: found for found in before.variant.measurements}
    reason, both = paired(before, after)
    drops = {each.metric: each for each in both if each.metric.partition("[")[0].endswith("_drop_pt")}
    times = _times(before, after)
    other_host = other_conditions(before, after)
    found: dict[str, Difference] = {}
    for later in after.variant.measurements:
        metric, first = later.metric, earlier.get(later.metric)
        if first is None or metric.partition("[")[0].endswith(_DERIVED):
            continue
        if metric in times:
            found[metric] = times[metric]
        elif metric.startswith(_HOST_BOUND) and other_host:
            found[metric] = Difference(reason=other_host)
        elif metric.startswith(_RATIOS):
            found[metric] = _ratio(first, later)
        elif (drop := drops.get(suffixed(metric, "_drop_pt"))) is not None:
            found[metric] = Difference(measured=drop, how="paired")
        elif suffixed(metric, "_drop_pt") in {each.metric for each in after.variant.measurements}:
            found[metric] = Difference(measured=_unpaired_drop(first, later), how="unpaired", reason=reason)
    return found


def _times(before: Side, after: Side) -> dict[str, Difference]:
    """The latency percentiles through the speed-ups, where both runs have the same baseline engine."""
    change = change_between(before, after, PERCENTILES)
    slowdowns = {each.metric: each for each in change.measurements}
    return {
        f"latency_{each}_ms": Difference(measured=slowdowns[f"latency_{each}_slowdown"], how="same baseline")
        for each in PERCENTILES
        if f"latency_{each}_slowdown" in slowdowns
    }


def _ratio(before: Measurement, after: Measurement) -> Difference:
    """Later over earlier; a point for two counts."""
    if not min(before.low, after.low) > 0:
        return Difference(reason=f"{before.metric} is 0 in one of them, so there is no ratio")
    value, interval = quotient(after, before)
    exact = before.low == before.high and after.low == after.high
    measured = measurement(f"{after.metric}_change", interval, value, min(before.n, after.n), "x")
    return Difference(measured=measured, how="exact" if exact else "unpaired")


def _unpaired_drop(before: Measurement, after: Measurement) -> Measurement:
    """Earlier less later in hundredths, the two being independent.

    Ends from the two intervals: Newcombe, Statistics in Medicine 17 (1998) 873, method 10 (square and add).
    """
    value = before.value - after.value
    down = math.hypot(before.value - before.low, after.high - after.value)
    up = math.hypot(before.high - before.value, after.value - after.low)
    interval = Interval(100 * (value - down), 100 * (value + up))
    return measurement(suffixed(after.metric, "_drop_pt"), interval, 100 * value, min(before.n, after.n), "pt")
