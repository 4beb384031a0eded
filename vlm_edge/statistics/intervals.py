"""Intervals for scores and latencies, and sample sizes. Every ``confidence`` is two-sided; every draw is seeded.

Sources: Wilson, JASA 22 (1927) 209; Tango, Statistics in Medicine 17 (1998) 891; Rao & Scott, Biometrics 48 (1992) 577
(counts from clusters, divided by their design effect); Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
chapters 8 (resample the units that were sampled) and 13 (percentile interval); Hahn & Meeker, Statistical Intervals,
1991, section 5.2 (distribution-free interval of a percentile).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
_CHUNK_CELLS = 4_000_000
_ROUNDING = 1e-9  # 0.7 * 10 is a little more than 7

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))


def wilson_interval(successes: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share. Conservative if ``successes`` is a sum of partial scores in 0..1."""
    z = normal_quantile(confidence)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def tango_interval(lost: float, gained: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Tango's score interval of the difference of two paired shares, (lost - gained) / n.

    ``lost`` and ``gained`` count the pairs that went from right to wrong and from wrong to right (sums, for partial
    scores). With neither, it is +-z^2 / (n + z^2), not a point. Tango 1998, eq. 4 to 8, solved by bisection.
    """
    z = normal_quantile(confidence)
    estimate = (lost - gained) / n

    def statistic(delta: float) -> float:
        b = (2 * n - lost + gained) * delta - lost - gained
        c = -gained * delta * (1 - delta)
        share = max(0.0, (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n))
        variance = n * (2 * share + delta * (1 - delta))
        distance = lost - gained - n * delta
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    return Interval(bisect(statistic, z, -1.0, estimate), bisect(statistic, -z, estimate, 1.0))


def ratio_of_ratios(above: tuple[float, float, float], below: tuple[float, float, float]) -> Interval:
    """Interval of above / below, two positive quantities measured independently, each as (low, value, high).

    Half-widths on the logarithms add in squares, each end with the other quantity's opposite end. Zou & Donner,
    Statistics in Medicine 27 (2008) 1693, equation 4 (method of variance estimates recovery).
    """
    value = above[1] / below[1]
    down = math.hypot(math.log(above[1] / above[0]), math.log(below[2] / below[1]))
    up = math.hypot(math.log(above[2] / above[1]), math.log(below[1] / below[0]))
    return Interval(value * math.exp(-down), value * math.exp(up))


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p-value of "a lost pair is as likely as a gained one", from the binomial distribution."""
    n, least = lost + gained, min(lost, gained)
    return min(1.0, 2.0 * float(_binomial_cdf(n, 0.5)[least]))


class PairedChange(NamedTuple):
    """``drop``: baseline's mean score minus candidate's. ``ratio``: candidate's over baseline's, None if that is 0."""

    drop: Interval
    ratio: Interval | None


def paired_change(
    baseline: ArrayLike,
    candidate: ArrayLike,
    groups: ArrayLike,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> PairedChange:
    """Intervals of a candidate's drop and ratio against a baseline on the same samples.

    baseline, candidate, groups: (n,): scores in 0..1 and the image of each sample. The drop's interval is the hull of
    two: the percentile interval of a bootstrap over whole images (the questions of an image share its luck), and
    Tango's with the counts divided by the design effect. The first alone is too short while few images changed, and a
    point when none did. The ratio's is the bootstrap's with the drop's, carried over at the baseline's score.
    """
    before, after = np.asarray(baseline, np.float64), np.asarray(candidate, np.float64)
    sums = group_sums(groups, before, after)
    counts, total_before, total_after = resample_groups(sums, seed, resamples).T
    change = before - after
    lost, gained, n = float(change[change > 0].sum()), float(-change[change < 0].sum()), len(change)
    effect = _design_effect(sums[:, 0], sums[:, 1] - sums[:, 2], lost + gained - (lost - gained) ** 2 / n)
    pairs = tango_interval(lost / effect, gained / effect, n / effect)
    drop = middle((total_before - total_after) / counts).hull(pairs)
    mean, usable = float(before.mean()), total_before > 0
    if mean == 0 or not usable.any():
        return PairedChange(drop, None)
    ratio = middle(total_after[usable] / total_before[usable])
    return PairedChange(drop, ratio.hull(Interval(1 - drop.high / mean, 1 - drop.low / mean)))


def mean_score_interval(scores: ArrayLike, groups: ArrayLike, *, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Interval of a mean score in 0..1, from scores (n,) and groups (n,).

    The hull of a bootstrap over whole groups and of Wilson's interval with the counts divided by the design effect.
    """
    values = np.asarray(scores, np.float64)
    sums = group_sums(groups, values)
    counts, totals = resample_groups(sums, seed, resamples).T
    n, mean = len(values), float(values.mean())
    effect = _design_effect(sums[:, 0], sums[:, 1], n * mean * (1 - mean))
    return middle(totals / counts).hull(wilson_interval(n * mean / effect, n / effect))


def percentile(values: ArrayLike, quantile: float) -> float:
    """The smallest of the values that at least the share ``quantile`` of them doesn't exceed."""
    ordered = np.sort(np.asarray(values, np.float64))
    return float(ordered[math.ceil(quantile * len(ordered) - _ROUNDING) - 1])


def percentile_interval(values: ArrayLike, quantile: float, confidence: float = CONFIDENCE) -> Interval | None:
    """Distribution-free interval of a percentile between two order statistics; None if there are too few values.

    The ranks l and u are the innermost with P(B < l) and P(B >= u) at most (1 - confidence) / 2 each, B being
    binomial(n, quantile). Hahn & Meeker 1991, section 5.2.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n, tail = len(ordered), (1 - confidence) / 2
    if n < minimal_n(quantile, confidence):
        return None
    below = _binomial_cdf(n, quantile)
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return Interval(float(ordered[low - 1]), float(ordered[high - 1]))


def minimal_n(quantile: float, confidence: float = CONFIDENCE) -> int:
    """The fewest values for which :func:`percentile_interval` has both ends."""
    rarer = min(quantile, 1 - quantile)
    return math.ceil(math.log((1 - confidence) / 2) / math.log1p(-rarer))


def middle(draws: Floats) -> Interval:
    """The bootstrap's percentile interval."""
    low, high = np.quantile(draws, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(float(low), float(high))


def bootstrap_interval(
    statistic: Callable[[Floats], Floats],
    sums: Floats,
    *,
    seed: int,
    unseen: Floats | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile interval of ``statistic(sums.sum(axis=0))`` over groups drawn with replacement.

    For any smooth function of sums over samples: F1, a mean of CIDEr scores; a paired change is one of both engines'
    columns side by side. Draws without a value (NaN) are left out; with none left, both ends are NaN.

    Args:
        statistic: sums (..., k) -> values (...), NaN where it is not defined.
        sums: (groups, k): each group's sums of per-sample columns.
        unseen: (kinds, k): sums of groups that the data may lack by chance, which a bootstrap can't draw:
            where no answer changed, its interval of a drop is a point. The interval is therefore widened to hold what
            the statistic would be with z^2 further groups of each kind. For a share with no failure seen, or a drop
            with no change seen, that is where Wilson's and Tango's intervals end.
    """
    drawn = statistic(resample_groups(sums, seed, resamples))
    drawn = drawn[np.isfinite(drawn)]
    interval = middle(drawn) if len(drawn) else Interval(np.nan, np.nan)
    if unseen is None:
        return interval
    ends = statistic(sums.sum(axis=0) + normal_quantile(CONFIDENCE) ** 2 * unseen)
    ends = ends[np.isfinite(ends)]
    return interval.hull(Interval(float(ends.min()), float(ends.max()))) if len(ends) else interval


def smallest_drop(n: int) -> float:
    """The smallest bound on a paired drop of scores in 0..1 that a candidate can keep on n samples, in 0..1.

    It is the upper end of Tango's interval when no answer changed, z^2 / (n + z^2): 0.28 for n = 10. Wilson's interval
    of a share, when every answer is right, begins at 1 less that. Samples are independent ones: where several questions
    share an image, count images.
    """
    z = normal_quantile(CONFIDENCE)
    return z * z / (n + z * z)


def samples_for_drop(bound: float) -> int | None:
    """The fewest samples on which a drop of at most ``bound`` (in 0..1) can pass; None if none suffice (bound 0).

    With fewer, even a candidate with the same answers is UNDECIDED. 73 for 0.05, 381 for 0.01. As many are needed for
    a share, or a ratio to a baseline that is always right, of at least 1 - ``bound``.
    """
    if bound <= 0:
        return None
    z = normal_quantile(CONFIDENCE)
    return max(1, math.ceil(z * z * (1 - bound) / bound))


def _design_effect(counts: Floats, totals: Floats, spread: float) -> float:
    """The factor by which grouped samples count for less than independent ones; at least 1.

    counts, totals: (groups,). It is the variance of sum(totals) over groups, relative to ``spread``, the variance of as
    many single samples. One more group of common size, all of whose samples changed alike, is added to both: an effect
    taken from few changed groups is worth little, and with none a sample is as good as its whole group.
    """
    groups, n = len(counts), float(counts.sum())
    size = float((counts**2).sum()) / n
    if groups < 2:
        return size
    residuals = totals - totals.sum() / n * counts
    clustered = float((residuals**2).sum()) * groups / (groups - 1)
    return max(1.0, (clustered + size**2) / (spread + size))


def group_sums(groups: ArrayLike, *scores: Floats) -> Floats:
    """(groups, 1 + len(scores)): each group's number of samples and its sum of each score."""
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    return np.stack([np.bincount(index), *(np.bincount(index, weights=values) for values in scores)], axis=1)


def resample_groups(sums: Floats, seed: int, resamples: int) -> Floats:
    """Column sums of ``len(sums)`` rows drawn with replacement: (resamples, columns).

    Rows that are alike are drawn as one kind with a multinomial count, which is the same distribution and much faster.
    """
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_CELLS // len(kinds))
    parts = [
        generator.multinomial(len(sums), counts / len(sums), size=min(rows, resamples - start)) @ kinds
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def _binomial_cdf(n: int, share: float) -> Floats:
    """P(B <= k) for k = 0..n."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    log_choose = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    return np.asarray(np.cumsum(np.exp(log_choose + k * math.log(share) + (n - k) * math.log1p(-share))))


def bisect(decreasing: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The place between ``low`` and ``high`` where a decreasing function crosses ``target``."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if decreasing(middle) > target else (low, middle)
    return (low + high) / 2


def normal_quantile(confidence: float) -> float:
    """z with P(|Z| <= z) = confidence, for a standard normal Z."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
