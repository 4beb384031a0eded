"""Latency measured until its verdicts are decided: the pair, and the A/A control again where it alone is in the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_edge.core.budget import Bound, Budgets, Judgement, Verdict, bounds_of, is_timed, judge
from vlm_edge.core.measurement import PATIENCE_S, LatencyAsked, Measurement, Timed

IsOpen = Callable[[Sequence[Measurement]], bool]
"""True of measurements that leave a verdict undecided, so that measuring on is worth its time."""


def asked_by(budgets: Sequence[Budgets]) -> LatencyAsked:
    """The times to measure for some budgets: p50 and p90, and what else one of them bounds."""
    metrics = {bound.metric for each in budgets for bound in bounds_of(each)}
    tail = (0.99,) if any(metric.startswith("latency_p99") for metric in metrics) else ()
    batches = [each.throughput.batch for each in budgets if each.throughput is not None]
    batch = max(batches, default=1 if "cost_per_1000" in metrics else None)
    return LatencyAsked(percentiles=(0.5, 0.9, *tail), batch=batch, cold_start="cold_start_ms" in metrics)


def is_undecided(bounds: Sequence[Bound], measured: Sequence[Measurement], control: Sequence[Measurement] = ()) -> bool:
    """True if these measurements leave a bound on a time UNDECIDED."""
    timed = (bound for bound in bounds if is_timed(bound.metric))
    return any(judge(bound, measured, control=control).verdict is Verdict.UNDECIDED for bound in timed)


def measure_until_decided(
    take: Callable[[Path, IsOpen], Timed],
    baseline: Path,
    candidate: Path,
    bounds: Sequence[Bound],
    known_control: Sequence[Measurement],
) -> Timed:
    """The candidate's times, with an A/A control of their own where the known one alone leaves a verdict open.

    ``take`` measures an engine against the baseline for as long as a verdict is open, or its cap is reached;
    ``known_control`` was taken before: at another time, maybe on a busier host.
    """
    timed = take(candidate, lambda found: is_undecided(bounds, found))
    if is_undecided(bounds, timed.measurements) or not is_undecided(bounds, timed.measurements, known_control):
        return timed
    again = take(baseline, lambda found: is_undecided(bounds, timed.measurements, found))
    own = [found for found in again.measurements if found.metric.endswith("_control")]
    conditions = {**timed.conditions, "control": again.conditions}
    return Timed(measurements=[*timed.measurements, *own], conditions=conditions)


def worth_more(timed: Timed, bounds: Sequence[Bound], known_control: Sequence[Measurement], patience_s: float) -> bool:
    """True if an earlier measurement leaves a verdict open, and took less time than there is patience for now."""
    parts = [timed.conditions, *([timed.conditions["control"]] if "control" in timed.conditions else [])]
    spent = max(float((part.get("meanwhile") or {}).get("seconds", math.inf)) for part in parts)
    return spent < patience_s and is_undecided(bounds, timed.measurements, known_control)


def judge_all(
    bounds: Sequence[Bound],
    measured: Sequence[Measurement],
    *,
    control: Sequence[Measurement],
    conditions: Mapping[str, Any],
    unmeasurable: str | None = None,
    emulated: str | None = None,
) -> list[Judgement]:
    """Every bound's judgement; one on a time that is open says what the host did meanwhile, and what to run next.

    ``conditions`` are a latency measurement's; ``emulated`` says of which other engine accuracy and fidelity are. The
    other arguments are those of :func:`vlm_edge.core.budget.judge`.
    """
    verdicts = []
    for bound in bounds:
        of_other = emulated if bound.budget.startswith(("accuracy", "fidelity")) else None
        reason = "; ".join(filter(None, (of_other, unmeasurable))) or None
        verdicts.append(judge(bound, measured, control=control, unmeasurable=reason))
    return [
        each.model_copy(update={"reason": f"{each.reason}; {_advice(conditions)}"})
        if each.verdict is Verdict.UNDECIDED and is_timed(each.metric)
        else each
        for each in verdicts
    ]


def _advice(conditions: Mapping[str, Any]) -> str:
    meanwhile = conditions.get("meanwhile") or {}
    facts = []
    if (busy := meanwhile.get("cpu_busy_share")) is not None:
        facts.append(f"its CPUs were busy {busy:.0%} of the time")
    if load := (meanwhile.get("load_average") or {}).get("after"):
        facts.append(f"the load was {load[0]:g}")
    if (waited := meanwhile.get("cpu_waiting_share")) is not None:
        facts.append(f"tasks waited for a CPU {waited:.0%} of it")
    if (stolen := meanwhile.get("cpu_stolen_share")) is not None and stolen >= 0.005:
        facts.append(f"other guests of the machine had {stolen:.0%}")
    shares = [engine.get("disturbed_share", 0) for engine in (conditions.get("engines") or {}).values()]
    if shares:
        facts.append(f"{max(shares):.0%} of an engine's queries were interrupted")
    host = f"in {meanwhile.get('seconds', 0):.0f} s of measuring: {', '.join(facts)}; " if facts else ""
    longer = 2 * conditions.get("patience_s", PATIENCE_S)
    command = f"`vlm-edge run RECIPE --remeasure --patience {longer:g}`"
    return f"{host}stop other work on this host, or measure longer: {command}"
