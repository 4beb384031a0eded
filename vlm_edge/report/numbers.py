"""Text of measurements and verdicts: a metric's title, value, unit, interval, n and bound."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.gate import Gate
from vlm_edge.core.measurement import Measurement
from vlm_edge.report.escape import on_terminal


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
    **{f"latency_{each}_ms": MetricFormat(each, "ms") for each in ("p50", "p90", "p99")},
    **{f"latency_{each}_speedup": MetricFormat(f"{each} speed-up", "x") for each in ("p50", "p90", "p99")},
    "cold_start_ms": MetricFormat("cold start", "ms", digits=0),
    "throughput_per_s": MetricFormat("throughput", "/s", digits=1),
    "cost_per_1000": MetricFormat("cost of 1,000", "", digits=5),
    "size_bytes": MetricFormat("size", "MB", 1e-6, exact=True),
    "size_ratio": MetricFormat("size ratio", "x", digits=4, exact=True),
    "parameters": MetricFormat("parameters", "M", 1e-6, exact=True),
    "macs": MetricFormat("MACs", "G", 1e-9, digits=3, exact=True),
    "peak_rss_mb": MetricFormat("peak memory", "MiB", digits=0),
}
"""In the order of a table's columns."""

_SHARES = {
    "top5": "top-5",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "yes_ratio": "yes ratio",
    "token_agreement": "tokens equal",
    "exact_match": "answers equal",
    **{f"recall_at_{k}": f"R@{k}" for k in (1, 5, 10)},
}
_OTHERS = {
    "cider": MetricFormat("CIDEr", "", digits=4),
    "embedding_cosine": MetricFormat("embedding cosine", "", digits=5),
    "modality_gap": MetricFormat("modality gap", "", digits=4),
    "modality_gap_change": MetricFormat("change of the modality gap", "", digits=4),
    "mcnemar_p": MetricFormat("McNemar p", "", digits=4, exact=True),
    **{f"latency_p{p}_control": MetricFormat(f"p{p} A/A control", "x", digits=4) for p in (50, 90, 99)},
}
_NAMED = METRICS | {name: MetricFormat(title, "%", 100.0) for name, title in _SHARES.items()} | _OTHERS

VERDICT_WORDS: dict[Verdict, str] = {
    Verdict.FAIL: "MISSED",
    Verdict.NOT_MEASURED: "NOT MEASURED",
    Verdict.UNDECIDED: "UNDECIDED",
    Verdict.PASS: "pass",
}
"""The worst first."""

_PART = re.compile(r"(?P<base>[^\[]*)(?:\[(?P<part>.*)\])?", re.DOTALL)


def split_metric(metric: str) -> tuple[str, str | None]:
    """``accuracy[color]`` -> (``accuracy``, ``color``); the part is None where there is none."""
    found = _PART.fullmatch(metric)
    return (found["base"], found["part"]) if found else (metric, None)


def named_format(metric: str, unit: str = "") -> MetricFormat:
    """The format of a metric by its name; an unknown one is a plain number in ``unit``.

    ``accuracy[color]`` is written as an accuracy, ``f1_drop_pt`` in points, ``f1_ratio`` as what was kept.
    """
    base, part = split_metric(metric)
    form = _NAMED.get(base)
    if form is None and base.endswith("_drop_pt"):
        form = MetricFormat(f"{_title(base.removesuffix('_drop_pt'))} drop", "pt")
    elif form is None and base.endswith("_ratio"):
        form = MetricFormat(f"{_title(base.removesuffix('_ratio'))} kept", "%", 100.0)
    elif form is None:
        return MetricFormat(metric, unit, digits=4)
    return replace(form, title=f"{form.title}, {part}") if part is not None else form


def _title(metric: str) -> str:
    return _NAMED[metric].title if metric in _NAMED else metric


def format_of(measurement: Measurement) -> MetricFormat:
    """The format of a measurement: of its metric, in the measurement's own unit where that is no share."""
    form = named_format(measurement.metric, measurement.unit)
    if form.unit == "%" and measurement.unit not in ("share", "ratio", "1", ""):
        return replace(form, unit=measurement.unit, scale=1.0, digits=4)
    if not form.unit and measurement.unit not in ("p", "share", "ratio", "1"):
        return replace(form, unit=measurement.unit)
    return form


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
    """Value, unit, interval and n: ``98.31 % [98.02, 98.60], n 9673``; ``4.12 MB, exact``."""
    value = f"{value_text(measurement)} {format_of(measurement).unit}".strip()
    if is_exact(measurement):
        return f"{value}, exact"
    return f"{value} {interval_text(measurement)}, n {measurement.n}"


def bound_text(judgement: Judgement) -> str:
    """The bound in the unit that its metric is shown in: ``<= 31.5 MB`` for a bound kept in bytes."""
    form = format_of(judgement.measured) if judgement.measured else named_format(judgement.metric)
    side, _, limit = judgement.bound.partition(" ")
    return f"{side} {float(limit) * form.scale:g} {form.unit}".strip()


def limit_of(judgement: Judgement) -> float:
    """The bound's number, in the metric's own unit."""
    return float(judgement.bound.partition(" ")[2])


def judgement_text(judgement: Judgement) -> str:
    """``latency.p90_speedup: 4.12 x [4.05, 4.20], n 400; the bound is >= 5 x``; then why it is open.

    Six significant digits, so that a value close to its bound is seen on the side where it is.
    """
    found = judgement.measured
    if found is None:
        return f"{judgement.budget}: {judgement.reason or 'no measurement'}; the bound is {bound_text(judgement)}"
    text = f"{judgement.budget}: {measured_text(found)}; the bound is {bound_text(judgement)}"
    return f"{text}; {why}" if (why := reason_text(judgement)) else text


def measured_text(found: Measurement) -> str:
    """Six significant digits: ``4.12345 x [4.05, 4.2], n 400``."""
    form = format_of(found)
    value, low, high = (f"{number * form.scale:.6g}" for number in (found.value, found.low, found.high))
    interval = "exact" if is_exact(found) else f"[{low}, {high}], n {found.n}"
    return " ".join(part for part in (value, form.unit, interval) if part)


def reason_text(judgement: Judgement) -> str:
    """The reason why a verdict is open, and about how many samples would decide it; empty if neither is known."""
    reason = judgement.reason or ""
    if judgement.needed_n is None or f"{judgement.needed_n:,}" in reason:
        return reason
    needed = f"about {judgement.needed_n:,} samples would decide it"
    return f"{reason}; {needed}" if reason else needed


def gate_headline(gate: Gate) -> str:
    """The verdict in one sentence, with the run that it was held against."""
    against = f" (against {gate.against})" if gate.against else ""
    total = len(gate.judgements)
    if not total:
        return f"{gate.run}: no budget was set, so nothing was judged"
    if gate.verdict is Verdict.PASS:
        within = "its one budget" if total == 1 else f"all {total} budgets"
        return f"{gate.run}: MET: {gate.variant} is within {within}{against}"
    counts = {verdict: sum(each.verdict is verdict for each in gate.judgements) for verdict in VERDICT_WORDS}
    unmet = ", ".join(
        f"{count} {VERDICT_WORDS[verdict].lower()}"
        for verdict, count in counts.items()
        if count and verdict is not Verdict.PASS
    )
    return f"{gate.run}: {VERDICT_WORDS[gate.verdict]}: {gate.variant}: {unmet} of {total} budgets{against}"


def gate_lines(gate: Gate) -> list[str]:
    """A line for each budget (verdict, name, value, interval, n, bound; its reason below), notes, the verdict."""
    gate = on_terminal(gate)
    rows = [(VERDICT_WORDS[each.verdict], each.budget, found_text(each), bound_text(each)) for each in gate.judgements]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    for row, judgement in zip(rows, gate.judgements, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        lines.append("  ".join([*cells, row[3]]))
        if reason := reason_text(judgement):
            lines.append(f"{' ' * widths[0]}  {reason}")
    return [*lines, *(f"note: {note}" for note in gate.notes), gate_headline(gate)]


def found_text(judgement: Judgement) -> str:
    """``4.12 x [4.05, 4.20], n 400``, to six significant digits; ``not measured`` where there is no number."""
    return measured_text(judgement.measured) if judgement.measured is not None else "not measured"
