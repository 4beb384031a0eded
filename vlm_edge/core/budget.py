"""Budgets: bounds on metrics, and the verdict on each, taken from the interval's pessimistic end."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vlm_edge.core.measurement import Measurement


class Verdict(StrEnum):
    """UNDECIDED: the interval holds the bound. NOT_MEASURED: this host can't measure it. Neither is a pass."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"
    NOT_MEASURED = "not_measured"


class _Budget(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AccuracyBudget(_Budget):
    """Bounds on the task's metric. ``max_drop_pt`` is in points (hundredths) lost against the FP32 baseline."""

    max_drop_pt: float | None = Field(default=None, ge=0, le=100)
    min_ratio: float | None = Field(default=None, gt=0, le=1)
    at_least: float | None = Field(default=None, ge=0, le=1)


class LatencyBudget(_Budget):
    """Bounds on the end-to-end latency at batch 1, in ms, and on how many times faster than the baseline it is."""

    p50_ms: float | None = Field(default=None, gt=0)
    p90_ms: float | None = Field(default=None, gt=0)
    p99_ms: float | None = Field(default=None, gt=0)
    p50_speedup: float | None = Field(default=None, gt=0)
    p90_speedup: float | None = Field(default=None, gt=0)


class SizeBudget(_Budget):
    """Bounds on what lies on the device's disk: MB (1e6 bytes), and the ratio to the baseline."""

    max_ratio: float | None = Field(default=None, gt=0)
    max_mb: float | None = Field(default=None, gt=0)


class MemoryBudget(_Budget):
    """Bounds on the peak resident memory of the process that answers, in MiB."""

    max_rss_mb: float | None = Field(default=None, gt=0)


class Budgets(_Budget):
    accuracy: AccuracyBudget | None = None
    latency: LatencyBudget | None = None
    size: SizeBudget | None = None
    memory: MemoryBudget | None = None

    def overridden(self, other: Budgets) -> Budgets:
        """These budgets with every bound that ``other`` sets in place of its own."""
        groups = {}
        for name in Budgets.model_fields:
            own, new = getattr(self, name), getattr(other, name)
            if own is not None and new is not None:
                new = own.model_copy(update=new.model_dump(exclude_unset=True))
            groups[name] = new or own
        return Budgets(**groups)


class Bound(BaseModel):
    """One bound on one metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: str
    metric: str
    at_most: float | None = None
    at_least: float | None = None

    def __str__(self) -> str:
        return f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"


class Judgement(BaseModel):
    """A bound, what was measured, and the verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: str
    metric: str
    bound: str
    verdict: Verdict
    measured: Measurement | None = None
    reason: str | None = None


# budget name -> (metric, which side bounds it, factor from the budget's unit to the metric's)
_METRICS: dict[str, tuple[str, Literal["at_most", "at_least"], float]] = {
    "accuracy.max_drop_pt": ("accuracy_drop_pt", "at_most", 1),
    "accuracy.min_ratio": ("accuracy_ratio", "at_least", 1),
    "accuracy.at_least": ("accuracy", "at_least", 1),
    "latency.p50_ms": ("latency_p50_ms", "at_most", 1),
    "latency.p90_ms": ("latency_p90_ms", "at_most", 1),
    "latency.p99_ms": ("latency_p99_ms", "at_most", 1),
    "latency.p50_speedup": ("latency_p50_speedup", "at_least", 1),
    "latency.p90_speedup": ("latency_p90_speedup", "at_least", 1),
    "size.max_ratio": ("size_ratio", "at_most", 1),
    "size.max_mb": ("size_bytes", "at_most", 1e6),
    "memory.max_rss_mb": ("peak_rss_mb", "at_most", 1),
}


def bounds_of(budgets: Budgets) -> list[Bound]:
    """Every bound that is set, in the order in which the recipe format lists them."""
    bounds = []
    for name, (metric, side, factor) in _METRICS.items():
        group, key = name.split(".")
        limit = getattr(getattr(budgets, group), key, None)
        if limit is not None:
            bounds.append(Bound.model_validate({"budget": name, "metric": metric, side: limit * factor}))
    return bounds


def judge(bound: Bound, measurements: Iterable[Measurement], *, unmeasurable: str | None = None) -> Judgement:
    """Hold one bound against the measurement of its metric.

    PASS when the whole interval is inside the bound, FAIL when it is wholly outside, UNDECIDED otherwise;
    NOT_MEASURED with the reason when there is no such measurement.
    """
    measured = next((found for found in measurements if found.metric == bound.metric), None)
    if measured is None:
        verdict = Verdict.NOT_MEASURED
    elif bound.at_most is not None:
        verdict = _side(measured.high <= bound.at_most, measured.low > bound.at_most)
    else:
        assert bound.at_least is not None
        verdict = _side(measured.low >= bound.at_least, measured.high < bound.at_least)
    reason = (unmeasurable or "no such measurement") if measured is None else None
    return Judgement(
        budget=bound.budget, metric=bound.metric, bound=str(bound), verdict=verdict, measured=measured, reason=reason
    )


def _side(inside: bool, outside: bool) -> Verdict:
    return Verdict.PASS if inside else Verdict.FAIL if outside else Verdict.UNDECIDED


def overall(judgements: Iterable[Judgement]) -> Verdict:
    """The worst of several verdicts: fail, then not measured, then undecided; pass when all pass (or none is set)."""
    verdicts = {judgement.verdict for judgement in judgements}
    for worst in (Verdict.FAIL, Verdict.NOT_MEASURED, Verdict.UNDECIDED):
        if worst in verdicts:
            return worst
    return Verdict.PASS
