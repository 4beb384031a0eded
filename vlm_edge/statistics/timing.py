"""Percentiles of query times and their ratios, for queries in rounds of fresh processes.

Queries of one process are not independent: they share its memory layout and the load of that moment, and two processes
of one engine differ. Rounds are independent, as each has its own processes. Intervals are therefore taken over rounds,
with Student's t.

Sources: Kalibera & Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013 (replicate at the highest level that
varies); Woodruff, JASA 47 (1952) 635 (interval of a percentile from that of the share below it); Reddi et al., MLPerf
Inference Benchmark, arXiv:1911.02549, and its rules' early stopping (the fewest queries of a percentile); Huber,
Annals of Mathematical Statistics 35 (1964) 73, and Liang & Zeger, Biometrika 73 (1986) 13 (a centre that outliers
don't move, and its error over clusters).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm_edge.statistics.intervals import CONFIDENCE, Interval, bisect, percentile, percentile_interval

LOOKED_AT = 0.97
"""Confidence of an interval whose narrowness may end the measurement. With looks after 6, 12, 18 ... rounds a nominal
97% holds the true ratio in 95% of simulated runs or more (benchmarks/gate_latency.py --simulate)."""
LOOKED_AGAIN = 0.998
"""Confidence while a verdict is open, with looks at 2, 4, 8 ... times the rounds. It is higher, since the measurement
ends at the first look whose interval excludes the bound."""
QUERIES_CONFIDENCE = 0.99
_ROUNDING = 1e-9

_STEPS = 50

Floats = NDArray[np.float64]
Rounds = Sequence[ArrayLike]
"""The query times of each round, (queries,)."""
Blocks = Sequence[Sequence[ArrayLike]]
"""The query times of each round's blocks, (queries,)."""


class Estimate(NamedTuple):
    """A value with its interval."""

    low: float
    value: float
    high: float


def fewest_queries(quantile: float) -> int:
    """The fewest queries that a percentile may be reported from: 11 for p50, 64 for p90, 662 for p99.

    The least n with P(B <= 1) <= 1 - QUERIES_CONFIDENCE, B being binomial(n, the rarer side's share): so sure is it
    that two queries or more lie beyond the percentile. MLPerf's early stopping with one discarded query.
    """
    rarer = min(quantile, 1 - quantile)
    n = 2
    while (1 - rarer) ** n + n * rarer * (1 - rarer) ** (n - 1) > 1 - QUERIES_CONFIDENCE + _ROUNDING:
        n += 1
    return n


def round_percentile(rounds: Rounds, quantile: float, confidence: float = CONFIDENCE) -> Estimate | None:
    """The percentile of all rounds' queries, with the wider of two distribution-free intervals; None if too few.

    One lies between the order statistics that a binomial gives, as if the queries were independent. The other
    (Woodruff) between those at ``quantile`` +- t standard errors of the share of queries below the percentile, taken
    over rounds; it ends at the longest time that was seen.
    """
    pooled = np.sort(np.concatenate([np.asarray(times, np.float64) for times in rounds]))
    interval = percentile_interval(pooled, quantile, confidence)
    if interval is None or len(pooled) < fewest_queries(quantile):
        return None
    value = percentile(pooled, quantile)
    if len(rounds) > 1:
        half = student_quantile((1 + confidence) / 2, len(rounds) - 1) * _share_error(rounds, value)
        ranks = [math.ceil(len(pooled) * share - _ROUNDING) for share in (quantile - half, quantile + half)]
        low, high = (float(pooled[min(max(rank, 1), len(pooled)) - 1]) for rank in ranks)
        interval = interval.hull(Interval(low, high))
    return Estimate(interval.low, value, interval.high)


def _share_error(rounds: Rounds, value: float) -> float:
    """Standard error of the share of queries at or below ``value``, over rounds: a ratio estimator's."""
    counts = np.array([len(np.asarray(times)) for times in rounds], np.float64)
    below = np.array([np.count_nonzero(np.asarray(times) <= value) for times in rounds], np.float64)
    residuals = below - below.sum() / counts.sum() * counts
    return float(np.sqrt((residuals**2).sum() * len(counts) / (len(counts) - 1)) / counts.sum())


def ratio_interval(
    baseline: Blocks, candidate: Blocks, quantile: float, confidence: float = LOOKED_AT
) -> Estimate | None:
    """Interval of (baseline's percentile) / (candidate's) over rounds of blocks in turns; None for one round.

    ``baseline[i][j]`` and ``candidate[i][j]`` are the times of the j-th pair of blocks of round i. The median's ratio
    is :func:`paired_ratio` of the blocks' medians. A rarer percentile needs more queries than a block has: its ratio
    is the geometric mean of the rounds' ratios.
    """
    if len(baseline) < 2:
        return None
    pairs = list(zip(baseline, candidate, strict=True))
    if quantile == 0.5:
        logs = [np.log([[np.median(np.asarray(block)) for block in blocks] for blocks in pair]) for pair in pairs]
        return paired_ratio([before - after for before, after in logs], confidence)
    ratios = [
        percentile(np.concatenate(before), quantile) / percentile(np.concatenate(after), quantile)
        for before, after in pairs
    ]
    return geometric_mean(ratios, confidence)


def paired_ratio(rounds: Sequence[Floats], confidence: float = LOOKED_AT) -> Estimate:
    """The centre of the log ratios of block pairs, (pairs,) a round, and its interval, as ratios.

    The centre is Huber's M-estimate (1964) with the bend at one robust standard deviation (MAD / 0.6745), so that a
    pair of which only one block was disturbed counts little. Its error is taken over rounds (Liang & Zeger 1986): pairs
    of one round share its processes. Student's t with one degree of freedom less than rounds.
    """
    logs = np.concatenate(rounds)
    centre = float(np.median(logs))
    bend = max(float(np.median(np.abs(logs - centre))) / 0.6745, 1e-12)
    for _ in range(_STEPS):
        inside = max(int(np.count_nonzero(np.abs(logs - centre) < bend)), 1)
        centre += float(np.clip(logs - centre, -bend, bend).sum()) / inside
    scores = np.array([np.clip(each - centre, -bend, bend).sum() for each in rounds])
    inside = max(int(np.count_nonzero(np.abs(logs - centre) < bend)), 1)
    count = len(rounds)
    error = math.sqrt(count / (count - 1) * float((scores**2).sum())) / inside
    half = student_quantile((1 + confidence) / 2, count - 1) * error
    return Estimate(math.exp(centre - half), math.exp(centre), math.exp(centre + half))


def geometric_mean(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate | None:
    """Geometric mean of positive values (rounds,) and Student's interval of it; None for fewer than two."""
    logs: Floats = np.log(np.asarray(values, np.float64))
    if len(logs) < 2:
        return None
    mean = float(logs.mean())
    half = student_quantile((1 + confidence) / 2, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Estimate(math.exp(mean - half), math.exp(mean), math.exp(mean + half))


@cache
def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t with a whole number of degrees of freedom, for a probability above 1/2."""
    high = 1.0
    while _student_cdf(high, degrees) < probability:
        high *= 2
    return bisect(lambda t: -_student_cdf(t, degrees), -probability, 0.0, high)


def _student_cdf(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0. Abramowitz & Stegun, 26.7.3 (odd degrees) and 26.7.4 (even)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine_squared, odd = math.cos(angle) ** 2, degrees % 2 == 1
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine_squared * (k - 1) / k
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + inside / 2
