"""One metric of two engines on the same samples: its value, its drop and its ratio, each with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.measurement import Measurement
from vlm_edge.evaluation.resample import bootstrap_interval
from vlm_edge.numerics.statistics import Interval, mean_score_interval, paired_change, tango_interval

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
class ScoreMetric:
    """A mean of per-sample scores that are no shares, such as CIDEr; before, after, groups: (samples,).

    The intervals come from a bootstrap over groups. That of a change is widened to either side by what no set of n
    groups can show: z^2 / (n + z^2) of them (Tango's interval where nothing changed) at the cost of the mean score.
    """

    metric: str
    before: Floats
    after: Floats
    groups: RowIndex
    same: bool
    seed: int
    unit: str

    def own(self) -> list[Measurement]:
        """The candidate's mean."""
        return [self._measured(self.metric, lambda _, new: new, self.unit, 0.0)]

    def changes(self) -> list[Measurement]:
        """Baseline less candidate in hundredths, and candidate over baseline where the baseline's mean is not 0."""
        mean = float(self.before.mean())
        unseen = 0.0 if self.same else tango_interval(0, 0, int(self.groups.max()) + 1).high
        drop, ratio = suffixed(self.metric, "_drop_pt"), suffixed(self.metric, "_ratio")
        found = [self._measured(drop, lambda old, new: 100 * (old - new), "pt", 100 * unseen * mean)]
        if mean > 0:
            found.append(self._measured(ratio, lambda old, new: new / np.where(old > 0, old, np.nan), "ratio", unseen))
        return found

    def _measured(self, metric: str, of: Callable[[Floats, Floats], Floats], unit: str, unseen: float) -> Measurement:
        columns = np.stack([np.ones_like(self.before), self.before, self.after], axis=1)
        sums = np.zeros((int(self.groups.max()) + 1, 3))
        np.add.at(sums, self.groups, columns)

        def statistic(each: Floats) -> Floats:
            return of(each[..., 1] / each[..., 0], each[..., 2] / each[..., 0])

        value = float(statistic(sums.sum(axis=0)))
        interval = bootstrap_interval(statistic, sums, seed=self.seed)
        interval = interval.hull(Interval(value - unseen, value + unseen))
        return measurement(metric, interval, value, len(self.after), unit)


@dataclass(frozen=True)
class SummaryMetric:
    """A function of sums of per-sample columns, such as F1; before, after: (samples, columns), groups: (samples,).

    Where the statistic is not defined (NaN, such as the precision of an engine that never says yes) there is no
    measurement.
    """

    metric: str
    statistic: Callable[[Floats], Floats]
    before: Floats
    after: Floats
    groups: RowIndex
    same: bool
    seed: int

    def own(self) -> list[Measurement]:
        """The candidate's value."""
        return self._measured(self.metric, lambda _, new: new, "share")

    def changes(self) -> list[Measurement]:
        """Baseline less candidate in hundredths, and candidate over baseline where the baseline's value is not 0."""
        drop, ratio = suffixed(self.metric, "_drop_pt"), suffixed(self.metric, "_ratio")
        if not self.same:
            lost = self._measured(drop, lambda old, new: 100 * (old - new), "pt")
            return [*lost, *self._measured(ratio, lambda old, new: new / np.where(old > 0, old, np.nan), "ratio")]
        old, _ = self._values(np.concatenate([self.before.sum(axis=0), self.after.sum(axis=0)]))
        n = len(self.after)
        none = [measurement(drop, Interval(0.0, 0.0), 0.0, n, "pt")] if math.isfinite(old) else []
        return [*none, *([measurement(ratio, Interval(1.0, 1.0), 1.0, n, "ratio")] if old > 0 else [])]

    def _measured(self, metric: str, of: Callable[[Floats, Floats], Floats], unit: str) -> list[Measurement]:
        columns = np.concatenate([self.before, self.after], axis=1)
        sums = np.zeros((int(self.groups.max()) + 1, columns.shape[1]))
        np.add.at(sums, self.groups, columns)
        value = float(of(*self._values(sums.sum(axis=0))))
        if not math.isfinite(value):
            return []
        interval = bootstrap_interval(lambda each: of(*self._values(each)), sums, seed=self.seed)
        return [measurement(metric, interval, value, len(self.after), unit)]

    def _values(self, sums: Floats) -> tuple[Floats, Floats]:
        """Sums (..., 2 x columns) -> the baseline's and the candidate's statistic (...)."""
        half = sums.shape[-1] // 2
        return self.statistic(sums[..., :half]), self.statistic(sums[..., half:])


def measurement(metric: str, interval: Interval, value: float, n: int, unit: str) -> Measurement:
    """A measurement from its parts."""
    return Measurement(metric=metric, low=interval.low, value=value, high=interval.high, n=n, unit=unit)
