"""Budgets: bounds on metrics, and the verdict on each, taken from the interval's pessimistic end."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from enum import StrEnum
from functools import partial
from statistics import NormalDist
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vlm_edge.checked import CheckedModel
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.target import Target


class Verdict(StrEnum):
    """UNDECIDED: the interval holds the bound. NOT_MEASURED: this host can't measure it. Neither is a pass."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"
    NOT_MEASURED = "not_measured"


class AccuracyBounds(CheckedModel):
    """Bounds on one metric of the task. ``max_drop_pt`` is in points (hundredths) lost against the FP32 baseline.

    ``min_ratio`` bounds candidate over baseline, as MLPerf Inference's 0.99 and 0.999; ``at_least`` the metric itself.
    """

    max_drop_pt: float | None = Field(default=None, ge=0, le=100)
    min_ratio: float | None = Field(default=None, gt=0, le=1)
    at_least: float | None = Field(default=None, ge=0, le=10)


class AccuracyBudget(AccuracyBounds):
    """Bounds on the task's primary metric, on its slices by name, and on its other metrics by name."""

    slices: dict[str, AccuracyBounds] = Field(default={})
    metrics: dict[str, AccuracyBounds] = Field(default={})


class FidelityBudget(CheckedModel):
    """Bounds on how close the candidate stays to the FP32 baseline: embeddings' cosine, generated tokens."""

    min_cosine: float | None = Field(default=None, ge=-1, le=1)
    min_token_agreement: float | None = Field(default=None, ge=0, le=1)
    min_exact_match: float | None = Field(default=None, ge=0, le=1)


class LatencyBudget(CheckedModel):
    """Bounds on the end-to-end latency at batch 1, in ms, and on how many times faster than the baseline it is.

    ``cold_start_ms`` bounds the time from loading the engine in a new process to its first answer.
    """

    p50_ms: float | None = Field(default=None, gt=0, le=1e9)
    p90_ms: float | None = Field(default=None, gt=0, le=1e9)
    p99_ms: float | None = Field(default=None, gt=0, le=1e9)
    p50_speedup: float | None = Field(default=None, gt=0, le=1e9)
    p90_speedup: float | None = Field(default=None, gt=0, le=1e9)
    p99_speedup: float | None = Field(default=None, gt=0, le=1e9)
    cold_start_ms: float | None = Field(default=None, gt=0, le=1e9)


class ThroughputBudget(CheckedModel):
    """A bound on the images a second when ``batch`` of them are asked at once."""

    batch: int = Field(ge=1, le=4096)
    at_least_per_s: float = Field(gt=0, le=1e9)


class CostBudget(CheckedModel):
    """A bound on the price of 1,000 images, in the currency of the target's ``price_per_hour``."""

    max_per_1000: float = Field(gt=0, le=1e9)


class SizeBudget(CheckedModel):
    """Bounds on what lies on the device's disk: MB (1e6 bytes), and the ratio to the baseline."""

    max_ratio: float | None = Field(default=None, gt=0, le=1e9)
    max_mb: float | None = Field(default=None, gt=0, le=1e9)


class MemoryBudget(CheckedModel):
    """Bounds on the peak resident memory of the process that answers, in MiB."""

    max_rss_mb: float | None = Field(default=None, gt=0, le=1e9)


class ComputeBudget(CheckedModel):
    """A bound on the multiply-accumulates of one query, in 1e9."""

    max_macs_g: float = Field(gt=0, le=1e9)


class Budgets(CheckedModel):
    accuracy: AccuracyBudget | None = None
    fidelity: FidelityBudget | None = None
    latency: LatencyBudget | None = None
    throughput: ThroughputBudget | None = None
    cost: CostBudget | None = None
    size: SizeBudget | None = None
    memory: MemoryBudget | None = None
    compute: ComputeBudget | None = None

    def overridden(self, other: Budgets) -> Budgets:
        """These budgets with every bound that ``other`` sets in place of its own."""
        merged = _merged(self.model_dump(exclude_unset=True), other.model_dump(exclude_unset=True))
        return Budgets.model_validate(merged)


def _merged(own: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``own`` with the values of ``new``, mapping by mapping; an unset group leaves its own as it is."""
    result = dict(own)
    for key, value in new.items():
        before = own.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            result[key] = _merged(before, value)
        elif value is not None or not isinstance(before, dict):
            result[key] = value
    return result


class Bound(BaseModel):
    """One bound on one metric; ``unmeasurable`` says why nothing that is measured can show that it is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: str
    metric: str
    at_most: float | None = None
    at_least: float | None = None
    unmeasurable: str | None = None

    def __str__(self) -> str:
        return f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"


class Judgement(BaseModel):
    """A bound, what was measured, and the verdict; ``reason`` for all but PASS and FAIL.

    ``needed_n`` is about how many samples (queries, for a latency) would decide an UNDECIDED one, where that is no
    more than :data:`MOST_MORE` times the samples there are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: str
    metric: str
    bound: str = Field(pattern=r"^[<>]= [+-]?[0-9]{1,20}(\.[0-9]{1,20})?(e[+-][0-9]{1,3})?$")
    verdict: Verdict
    measured: Measurement | None = None
    reason: str | None = None
    needed_n: int | None = Field(default=None, ge=0, le=10**12)


# budget name -> (metric, which side bounds it, factor from the budget's unit to the metric's)
_METRICS: dict[str, tuple[str, Literal["at_most", "at_least"], float]] = {
    "fidelity.min_cosine": ("embedding_cosine", "at_least", 1),
    "fidelity.min_token_agreement": ("token_agreement", "at_least", 1),
    "fidelity.min_exact_match": ("exact_match", "at_least", 1),
    **{f"latency.{each}_ms": (f"latency_{each}_ms", "at_most", 1) for each in ("p50", "p90", "p99")},
    **{f"latency.{each}_speedup": (f"latency_{each}_speedup", "at_least", 1) for each in ("p50", "p90", "p99")},
    "latency.cold_start_ms": ("cold_start_ms", "at_most", 1),
    "throughput.at_least_per_s": ("throughput_per_s", "at_least", 1),
    "cost.max_per_1000": ("cost_per_1000", "at_most", 1),
    "size.max_ratio": ("size_ratio", "at_most", 1),
    "size.max_mb": ("size_bytes", "at_most", 1e6),
    "memory.max_rss_mb": ("peak_rss_mb", "at_most", 1),
    "compute.max_macs_g": ("macs", "at_most", 1e9),
}
_ACCURACY: dict[str, tuple[str, Literal["at_most", "at_least"]]] = {
    "max_drop_pt": ("_drop_pt", "at_most"),
    "min_ratio": ("_ratio", "at_least"),
    "at_least": ("", "at_least"),
}


def bounds_of(budgets: Budgets) -> list[Bound]:
    """Every bound that is set: accuracy with its slices and metrics, then the others in the recipe's order."""
    bounds = []
    if budgets.accuracy is not None:
        bounds += _accuracy_bounds("accuracy", budgets.accuracy, "accuracy", "")
        for name, own in budgets.accuracy.slices.items():
            bounds += _accuracy_bounds(f"accuracy.slices.{name}", own, "accuracy", f"[{name}]")
        for name, own in budgets.accuracy.metrics.items():
            metric, bracket, part = name.partition("[")
            bounds += _accuracy_bounds(f"accuracy.metrics.{name}", own, metric, bracket + part)
    for name, (metric, side, factor) in _METRICS.items():
        group, key = name.split(".")
        limit = getattr(getattr(budgets, group), key, None)
        if limit is not None:
            bounds.append(Bound.model_validate({"budget": name, "metric": metric, side: limit * factor}))
    return bounds


def memory_bound(target: Target, conditions: Mapping[str, Any]) -> list[Bound]:
    """The bound that the target's RAM is on the peak resident memory of the process that answers; none if not given.

    ``conditions`` are a latency measurement's: ``on_gpu`` says that weights and activations lay in a GPU's memory.
    """
    if target.memory_mb is None:
        return []
    unseen = "what its engine holds in the GPU's memory is no part of the process's resident memory"
    return [
        Bound(
            budget="target.memory_mb",
            metric="peak_rss_mb",
            at_most=target.memory_mb,
            unmeasurable=unseen if conditions.get("on_gpu") else None,
        )
    ]


def _accuracy_bounds(budget: str, bounds: AccuracyBounds, metric: str, part: str) -> list[Bound]:
    return [
        Bound.model_validate({"budget": f"{budget}.{key}", "metric": f"{metric}{suffix}{part}", side: limit})
        for key, (suffix, side) in _ACCURACY.items()
        if (limit := getattr(bounds, key)) is not None
    ]


def judge(
    bound: Bound,
    measurements: Iterable[Measurement],
    *,
    control: Iterable[Measurement] = (),
    unmeasurable: str | None = None,
) -> Judgement:
    """Hold one bound against the measurement of its metric.

    PASS when the whole interval is inside the bound, FAIL when it is wholly outside, UNDECIDED otherwise;
    NOT_MEASURED with the reason when there is no such measurement. One that was taken of another engine on the same
    graphs can show that the bound is missed, but not that it is kept.

    Args:
        control: the baseline's measurements. What its A/A control found (how far two processes of one engine may lie
            apart on this host) is the least width of a latency's interval here: a finer budget is UNDECIDED. A control
            among ``measurements`` comes first: it was taken with them.
        unmeasurable: why this host can't measure the variant: what was measured is of another engine.
    """
    judgement = partial(Judgement, budget=bound.budget, metric=bound.metric, bound=str(bound))
    taken = list(measurements)
    measured = next((found for found in taken if found.metric == bound.metric), None)
    if measured is None or bound.unmeasurable:
        reason = unmeasurable or bound.unmeasurable or f"the evaluation gave no {bound.metric}"
        return judgement(verdict=Verdict.NOT_MEASURED, reason=reason)
    limit, above = (bound.at_most, False) if bound.at_most is not None else (bound.at_least, True)
    assert limit is not None
    verdict = _verdict(measured.low, measured.high, limit, above)
    if unmeasurable is not None:
        kept = verdict if verdict is Verdict.FAIL else Verdict.NOT_MEASURED
        return judgement(verdict=kept, measured=measured, reason=unmeasurable)
    if verdict is Verdict.UNDECIDED:
        needed = samples_to_decide(measured, limit)
        parts = ["the interval holds the bound"]
        if not is_timed(bound.metric) and measured.n > 1:
            parts.append(f"these {measured.n:,} samples show {_shown_bound(measured, above)}")
            needed = needed if needed and needed <= MOST_MORE * measured.n else None  # nobody collects a hundred times
        parts += [f"about {needed:,} samples would decide it"] if needed else []
        return judgement(verdict=verdict, measured=measured, reason="; ".join(parts), needed_n=needed)
    noise = resolution(bound.metric, [*taken, *control])
    low, high = min(measured.low, measured.value / (1 + noise)), max(measured.high, measured.value * (1 + noise))
    if _verdict(low, high, limit, above) is Verdict.UNDECIDED:
        reason = f"the bound is closer than the {100 * noise:.2g}% that this host can tell apart (A/A control)"
        return judgement(verdict=Verdict.UNDECIDED, measured=measured, reason=reason)
    return judgement(verdict=verdict, measured=measured)


def _shown_bound(measured: Measurement, above: bool) -> str:
    """The tightest bound of three digits that the interval keeps, as :class:`Bound` prints one."""
    end, rounding = (measured.low, ROUND_FLOOR) if above else (measured.high, ROUND_CEILING)
    rounded = float(Context(prec=3, rounding=rounding).create_decimal(Decimal(end)))
    return f"{'>=' if above else '<='} {rounded:g}"


def _verdict(low: float, high: float, limit: float, above: bool) -> Verdict:
    """PASS, FAIL or UNDECIDED for an interval and a limit that it has to lie above (or below)."""
    inside, outside = (low >= limit, high < limit) if above else (high <= limit, low > limit)
    return Verdict.PASS if inside else Verdict.FAIL if outside else Verdict.UNDECIDED


_TIMED = re.compile(r"latency_(p\d+)_(?:ms|speedup|slowdown)|cold_start_ms|throughput_per_s|cost_per_1000")


def is_timed(metric: str) -> bool:
    """True for a time or a ratio of times, which the host's load moves."""
    return _TIMED.fullmatch(metric) is not None


def resolution(metric: str, control: Iterable[Measurement]) -> float:
    """The relative difference that this host can't tell from none, for a latency; 0 for what is no time.

    It is the far end of the A/A control's interval at the same percentile (the median for what has none).
    """
    timed = _TIMED.fullmatch(metric)
    if timed is None:
        return 0.0
    name = f"latency_{timed[1] or 'p50'}_control"
    found = next((each for each in control if each.metric == name), None)
    return max(found.high - 1, 1 / found.low - 1, 0.0) if found is not None else 0.0


MOST_MORE = 20
"""An open verdict says how many samples would decide it up to so many times those there are."""
_SURE = (1 + NormalDist().inv_cdf(0.9) / NormalDist().inv_cdf(0.975)) ** 2
"""2.74: an interval that just ends at the bound on average holds it in one set of two; with so many
times the samples it holds it in one of ten."""


def samples_to_decide(measured: Measurement, limit: float) -> int | None:
    """The number of samples with which the interval leaves the limit in 9 sets of 10, if the value is the truth.

    Its width goes with 1 / sqrt(n). None when the value lies on the limit, or the number is no use (over 1e9).
    """
    distance = abs(measured.value - limit)
    half = measured.high - measured.value if limit > measured.value else measured.value - measured.low
    if distance <= 1e-12 * max(abs(limit), 1.0) or not half > 0:
        return None
    needed = measured.n * (half / distance) ** 2 * _SURE
    return math.ceil(needed) if needed <= 1e9 else None


def overall(judgements: Iterable[Judgement]) -> Verdict:
    """The worst of several verdicts: fail, then not measured, then undecided; pass when all pass (or none is set)."""
    verdicts = {judgement.verdict for judgement in judgements}
    for worst in (Verdict.FAIL, Verdict.NOT_MEASURED, Verdict.UNDECIDED):
        if worst in verdicts:
            return worst
    return Verdict.PASS
