"""What every metric of one run differs by from another run's: paired where the outcomes allow it, else said to be not.

Task metrics are compared sample by sample through the outcomes files when both runs were evaluated on the same data.
Latencies go through the speed-ups over one baseline engine on hosts of one kind. Everything else is taken from the two
records as if independent; what can't be compared gets a reason.
"""

from __future__ import annotations

import math

from vlm_edge.core.difference import Difference
from vlm_edge.core.measurement import Measurement
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.change import Side, change_between, kept_outcomes, other_conditions, quotient
from vlm_edge.evaluation.comparison import compare

PERCENTILES = ("p50", "p90", "p99")
_HOST_BOUND = ("latency_", "cold_start_ms", "throughput_per_s", "cost_per_1000", "peak_rss_mb")
_RATIOS = (*_HOST_BOUND, "size_bytes", "parameters", "macs")
_DERIVED = ("_drop_pt", "_ratio", "_speedup", "_control")


def differences(before: Side, after: Side) -> dict[str, Difference]:
    """By metric, what ``after`` differs by from ``before``, for every metric that both have and that can differ."""
    earlier = {found.metric: found for found in before.variant.measurements}
    drops, reason = _paired_drops(before, after)
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
        elif (drop := drops.get(_drop_of(metric))) is not None:
            found[metric] = Difference(measured=drop, how="paired")
        elif _drop_of(metric) in {each.metric for each in after.variant.measurements}:
            found[metric] = Difference(measured=_unpaired_drop(first, later), how="unpaired", reason=reason)
    return found


def _paired_drops(before: Side, after: Side) -> tuple[dict[str, Measurement], str | None]:
    """Every drop that the outcomes of both runs give sample by sample, or why they give none."""
    outcomes = []
    for side in (before, after):
        reason, kept = kept_outcomes(side)
        if kept is None:
            return {}, reason
        outcomes.append(kept)
    try:
        measured = compare(outcomes[0], outcomes[1], after.record.seed)
    except VlmEdgeError as error:
        return {}, error.message
    return {each.metric: each for each in measured if each.metric.partition("[")[0].endswith("_drop_pt")}, None


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
    measured = Measurement(
        metric=f"{after.metric}_change",
        low=interval.low,
        value=value,
        high=interval.high,
        n=min(before.n, after.n),
        unit="x",
    )
    return Difference(measured=measured, how="exact" if exact else "unpaired")


def _unpaired_drop(before: Measurement, after: Measurement) -> Measurement:
    """Earlier less later in hundredths, the two being independent.

    Ends from the two intervals: Newcombe, Statistics in Medicine 17 (1998) 873, method 10 (square and add).
    """
    value = before.value - after.value
    down = math.hypot(before.value - before.low, after.high - after.value)
    up = math.hypot(before.high - before.value, after.value - after.low)
    low, high = 100 * (value - down), 100 * (value + up)
    n = min(before.n, after.n)
    return Measurement(metric=_drop_of(after.metric), low=low, value=100 * value, high=high, n=n, unit="pt")


def _drop_of(metric: str) -> str:
    """``accuracy[color]`` -> ``accuracy_drop_pt[color]``."""
    base, bracket, part = metric.partition("[")
    return f"{base}_drop_pt{bracket}{part}"
