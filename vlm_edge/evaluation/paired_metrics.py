"""One metric of two engines on the same samples: its value, its drop and its ratio, each with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.measurement import Measurement
from vlm_edge.statistics.intervals import Interval, bootstrap_interval, group_sums, mean_score_interval, paired_change

Floats = NDArray[np.float64]
RowIndex = NDArray[np.int64]


def suffixed(metric: str, suffix: str) -> str:
    """``accuracy[color]`` and ``_drop_pt`` give ``accuracy_drop_pt[color]``."""
    name, bracket, part = metric.partition("[")
    return f"{name}{suffix}{bracket}{part}"


@dataclass(frozen=True)
class MeanMetric:
    """A mean of per-sample scores; before, after, groups: (samples,).

    Scores are in 0..1. ``same`` is for one engine against itself.
    """

    metric: str
    before: Floats
    after: Floats
    groups: RowIndex
    same: bool
    seed: int

    def own(self) -> list[Measurement]:
        """The candidate's mean."""
        interval = mean_score_interval(self.after, self.groups, seed=self.seed)
        return [measurement(self.metric, interval, float(self.after.mean()), len(self.after), "share")]

    def changes(self) -> list[Measurement]:
        """Baseline less candidate in hundredths, and candidate over baseline where the baseline's mean is not 0."""
        n, mean = len(self.after), float(self.before.mean())
        drop, ratio = Interval(0.0, 0.0), None if mean == 0 else Interval(1.0, 1.0)
        if not self.same:
            change = paired_change(self.before, self.after, self.groups, seed=self.seed)
            drop, ratio = Interval(100 * change.drop.low, 100 * change.drop.high), change.ratio
        lost = 100 * float((self.before - self.after).mean())
        found = [measurement(suffixed(self.metric, "_drop_pt"), drop, lost, n, "pt")]
        if ratio is not None:
            kept = float(self.after.mean()) / mean
            found.append(measurement(suffixed(self.metric, "_ratio"), ratio, kept, n, "ratio"))
        return found


@dataclass(frozen=True)
class SummaryMetric:
    """A :class:`~vlm_edge.evaluation.tasks.base.Summary`; before, after: (samples, columns), groups: (samples,).

    An engine that gets a sample right may get it wrong on data that were not drawn. So the intervals hold what z^2
    further groups of the common size would make of the metric, were all their samples of one of the ``kinds`` before
    and of one after. Where the statistic is NaN (the precision of an engine that never says yes) there is no
    measurement.
    """

    metric: str
    statistic: Callable[[Floats], Floats]
    before: Floats
    after: Floats
    kinds: tuple[Floats, ...]
    groups: RowIndex
    same: bool
    seed: int
    unit: str = "share"

    def own(self) -> list[Measurement]:
        """The candidate's value."""
        return self._measured(self.metric, lambda _, new: new, self.unit)

    def changes(self) -> list[Measurement]:
        """Baseline less candidate in hundredths, and candidate over baseline where the baseline's value is not 0."""
        drop, ratio = suffixed(self.metric, "_drop_pt"), suffixed(self.metric, "_ratio")
        if not self.same:
            lost = self._measured(drop, lambda old, new: 100 * (old - new), "pt")
            return [*lost, *self._measured(ratio, lambda old, new: new / np.where(old > 0, old, np.nan), "ratio")]
        old, n = self.statistic(self.before.sum(axis=0)), len(self.after)
        none = [measurement(drop, Interval(0.0, 0.0), 0.0, n, "pt")] if math.isfinite(old) else []
        return [*none, *([measurement(ratio, Interval(1.0, 1.0), 1.0, n, "ratio")] if old > 0 else [])]

    def _measured(self, metric: str, of: Callable[[Floats, Floats], Floats], unit: str) -> list[Measurement]:
        def statistic(sums: Floats) -> Floats:
            return of(self.statistic(sums[..., :half]), self.statistic(sums[..., half:]))

        half = self.before.shape[1]
        counts, *columns = group_sums(self.groups, *self.before.T, *self.after.T).T
        sums = np.stack(columns, axis=1)
        value = float(statistic(sums.sum(axis=0)))
        if not math.isfinite(value):
            return []
        pairs = [np.concatenate([old, new]) for each in self.kinds for old in each for new in each]
        size = float((counts**2).sum() / counts.sum())
        interval = bootstrap_interval(statistic, sums, seed=self.seed, unseen=size * np.stack(pairs))
        return [measurement(metric, interval, value, len(self.after), unit)]


def score_metric(
    metric: str, before: Floats, after: Floats, groups: RowIndex, same: bool, seed: int, unit: str
) -> SummaryMetric:
    """A mean of per-sample scores that are no shares, such as CIDEr; before, after, groups: (samples,).

    A sample that was not drawn may have none of its score, or the mean.
    """

    def with_count(scores: Floats) -> Floats:
        return np.stack([np.ones_like(scores), scores], axis=1)

    def mean(sums: Floats) -> Floats:
        return np.asarray(sums[..., 1] / sums[..., 0])

    kinds = with_count(np.array([0.0, before.mean()]))
    return SummaryMetric(metric, mean, with_count(before), with_count(after), (kinds,), groups, same, seed, unit)


def measurement(metric: str, interval: Interval, value: float, n: int, unit: str) -> Measurement:
    """A measurement with an interval around its value."""
    return Measurement(metric=metric, low=interval.low, value=value, high=interval.high, n=n, unit=unit)
