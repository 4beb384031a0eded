"""How a measurement is written: the metric's name, its unit, its interval and n."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.measurement import Measurement


@dataclass(frozen=True)
class MetricFormat:
    """A metric in words: the shown number is ``value * scale`` with ``digits`` decimals, in ``unit``.

    ``exact`` marks a count, which has no interval and no n.
    """

    title: str
    unit: str
    scale: float = 1.0
    digits: int = 2
    exact: bool = False


METRICS: dict[str, MetricFormat] = {
    "accuracy": MetricFormat("accuracy", "%", 100.0),
    "accuracy_drop_pt": MetricFormat("drop", "pt"),
    "accuracy_ratio": MetricFormat("accuracy kept", "%", 100.0),
    "latency_p50_ms": MetricFormat("p50", "ms"),
    "latency_p90_ms": MetricFormat("p90", "ms"),
    "latency_p99_ms": MetricFormat("p99", "ms"),
    "latency_p50_speedup": MetricFormat("p50 speed-up", "x"),
    "latency_p90_speedup": MetricFormat("p90 speed-up", "x"),
    "size_bytes": MetricFormat("size", "MB", 1e-6, exact=True),
    "size_ratio": MetricFormat("size ratio", "x", digits=4, exact=True),
    "parameters": MetricFormat("parameters", "M", 1e-6, exact=True),
    "peak_rss_mb": MetricFormat("peak memory", "MiB", digits=0),
}
"""In the order of a table's columns."""

VERDICT_WORDS: dict[Verdict, str] = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "MISSED",
    Verdict.UNDECIDED: "UNDECIDED",
    Verdict.NOT_MEASURED: "NOT MEASURED",
}


def format_of(measurement: Measurement) -> MetricFormat:
    """The format of a known metric (``accuracy[color]`` is an accuracy), or a plain one in the measurement's unit."""
    plain = MetricFormat(measurement.metric, measurement.unit, digits=4)
    return METRICS.get(measurement.metric.partition("[")[0], plain)


def is_exact(measurement: Measurement) -> bool:
    """Whether it is a count, with no interval around it."""
    return format_of(measurement).exact and measurement.low == measurement.high


def value_text(measurement: Measurement) -> str:
    """The value without its unit: ``98.31``."""
    form = format_of(measurement)
    return f"{measurement.value * form.scale:,.{form.digits}f}"


def interval_text(measurement: Measurement) -> str:
    """``[98.02, 98.60]``, or ``exact``."""
    if is_exact(measurement):
        return "exact"
    form = format_of(measurement)
    low, high = measurement.low * form.scale, measurement.high * form.scale
    return f"[{low:,.{form.digits}f}, {high:,.{form.digits}f}]"


def measurement_text(measurement: Measurement) -> str:
    """One number with all that belongs to it: ``98.31 % [98.02, 98.60], n 9673``; ``4.12 MB, exact``."""
    unit = format_of(measurement).unit
    if is_exact(measurement):
        return f"{value_text(measurement)} {unit}, exact"
    return f"{value_text(measurement)} {unit} {interval_text(measurement)}, n {measurement.n}"


def bound_text(judgement: Judgement) -> str:
    """The bound in the unit in which its metric is shown: ``<= 31.5 MB`` for a bound kept in bytes."""
    form = METRICS.get(judgement.metric)
    side, _, limit = judgement.bound.partition(" ")
    if form is None:
        return judgement.bound
    return f"{side} {float(limit) * form.scale:g} {form.unit}"


def judgement_text(judgement: Judgement) -> str:
    """``latency.p90_speedup: 4.12 x [4.05, 4.20], n 400; the bound is >= 5 x``.

    Six significant digits, so that a value close to its bound is seen on the side where it is.
    """
    found = judgement.measured
    if found is None:
        return f"{judgement.budget}: {judgement.reason or 'no measurement'}; the bound is {bound_text(judgement)}"
    form = format_of(found)
    value, low, high = (f"{number * form.scale:.6g}" for number in (found.value, found.low, found.high))
    interval = "exact" if is_exact(found) else f"[{low}, {high}], n {found.n}"
    return f"{judgement.budget}: {value} {form.unit} {interval}; the bound is {bound_text(judgement)}"
