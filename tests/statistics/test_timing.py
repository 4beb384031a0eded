"""Intervals of times over rounds: against scipy, and by simulation with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlm_edge.statistics.intervals import percentile, percentile_interval
from vlm_edge.statistics.timing import (
    LOOKED_AT,
    fewest_queries,
    geometric_mean,
    paired_ratio,
    ratio_interval,
    round_percentile,
    student_quantile,
)


@pytest.mark.parametrize(("quantile", "count"), [(0.5, 11), (0.9, 64), (0.99, 662), (0.1, 64)])
def test_the_fewest_queries_are_mlperf_s(quantile, count):
    assert fewest_queries(quantile) == count
    rarer = min(quantile, 1 - quantile)
    assert stats.binom.cdf(1, count, rarer) <= 0.01 < stats.binom.cdf(1, count - 1, rarer)


@given(st.integers(1, 200), st.floats(0.6, 0.9995))
def test_student_s_quantile_is_scipy_s(degrees, probability):
    assert student_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9)


@pytest.mark.parametrize("confidence", [0.95, 0.97])
def test_the_geometric_mean_s_interval_is_the_t_interval_of_the_logarithms(confidence):
    values = np.random.default_rng(0).lognormal(0.1, 0.05, 7)
    found = geometric_mean(values, confidence)
    logs = np.log(values)
    expected = stats.t.interval(confidence, 6, loc=logs.mean(), scale=stats.sem(logs))
    assert (np.log(found.low), np.log(found.high)) == pytest.approx(expected, rel=1e-9)
    assert found.value == pytest.approx(stats.gmean(values))
    assert geometric_mean(values[:1]) is None


def test_a_percentile_of_one_round_has_the_order_statistics_interval():
    times = np.random.default_rng(1).lognormal(0, 0.3, 500)
    found = round_percentile([times], 0.9)
    assert (found.low, found.high) == percentile_interval(times, 0.9)
    assert found.value == percentile(times, 0.9)


@pytest.mark.parametrize(("quantile", "count"), [(0.5, 10), (0.9, 63), (0.99, 661)])
def test_a_percentile_with_too_few_queries_is_none(quantile, count):
    times = np.arange(1.0, count + 1)
    assert round_percentile([times], quantile) is None
    assert round_percentile([times, [count + 1.0]], quantile) is not None


def coverage(spread, *, rounds=8, queries=200, runs=300):
    """How often the interval of the median holds it, when every round's times are shifted by its own luck."""
    generator = np.random.default_rng(2)
    held = plain = 0
    for _ in range(runs):
        times = generator.normal(100, 5, (rounds, queries)) + generator.normal(0, spread, (rounds, 1))
        found = round_percentile(list(times), 0.5)
        held += found.low <= 100 <= found.high
        low, high = percentile_interval(times.ravel(), 0.5)
        plain += low <= 100 <= high
    return held / runs, plain / runs


def test_a_percentile_s_interval_knows_that_rounds_differ():
    held, plain = coverage(spread=3.0)
    assert held >= 0.93
    assert plain < 0.5
    held, plain = coverage(spread=0.0)
    assert min(held, plain) >= 0.93


def test_woodruff_s_interval_by_hand():
    """Two rounds of 20: the shares at or below the pooled median are 15/20 and 5/20, so their mean's error is 1/4."""
    first, second = [*range(1, 16), *range(101, 106)], [*range(16, 21), *range(106, 121)]
    found = round_percentile([first, second], 0.5)
    assert found.value == 20
    assert (found.low, found.high) == (1, 120)  # t with 1 degree of freedom: 12.7 quarters


def test_a_ratio_that_every_round_shows_is_certain():
    generator = np.random.default_rng(3)
    luck = generator.lognormal(0, 0.5, (6, 4))
    baseline = [[factor * np.arange(1.0, 101) for factor in row] for row in luck]
    candidate = [[factor * np.arange(1.0, 101) / 2 for factor in row] for row in luck]
    assert tuple(ratio_interval(baseline, candidate, 0.5)) == pytest.approx((2, 2, 2))
    assert tuple(ratio_interval(baseline, candidate, 0.9)) == pytest.approx((2, 2, 2))
    assert ratio_interval(baseline[:1], candidate[:1], 0.5) is None


def test_a_rarer_percentile_s_ratio_is_of_whole_rounds():
    generator = np.random.default_rng(4)
    baseline = [generator.lognormal(0, 0.3, (10, 8)) for _ in range(6)]
    candidate = [generator.lognormal(0.1, 0.3, (10, 8)) for _ in range(6)]
    ratios = [percentile(a.ravel(), 0.9) / percentile(b.ravel(), 0.9) for a, b in zip(baseline, candidate, strict=True)]
    found = ratio_interval([list(each) for each in baseline], [list(each) for each in candidate], 0.9)
    assert tuple(found) == pytest.approx(tuple(geometric_mean(ratios, LOOKED_AT)))


def test_the_centre_is_huber_s():
    """The M-estimate's own equation: the bent distances from it add up to nothing."""
    generator = np.random.default_rng(5)
    rounds = [generator.normal(0.1, 0.02, 30) for _ in range(6)]
    rounds[2][:4] += 3.0  # a neighbour's burst
    found = paired_ratio(rounds)
    logs, centre = np.concatenate(rounds), np.log(found.value)
    bend = np.median(np.abs(logs - np.median(logs))) / stats.norm.ppf(0.75)
    assert np.clip(logs - centre, -bend, bend).sum() == pytest.approx(0, abs=1e-5)
    assert centre == pytest.approx(0.1, abs=0.01)
    assert abs(logs.mean() - 0.1) > 0.05


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_the_ratio_s_interval_holds_the_truth_with_outliers_and_differing_processes(spread):
    generator = np.random.default_rng(6)
    held = 0
    for _ in range(400):
        rounds = generator.normal(0, 0.03, (6, 20)) + generator.normal(0, spread, (6, 1))
        bursts = generator.random(rounds.shape) < 0.1
        rounds[bursts] += generator.choice([-1, 1], bursts.sum()) * generator.exponential(1.0, bursts.sum())
        found = paired_ratio(list(rounds))
        held += found.low <= 1 <= found.high
    assert held / 400 >= 0.95


def test_pairs_without_any_spread_are_a_point():
    assert tuple(paired_ratio([np.full(4, 0.5)] * 3)) == pytest.approx((np.exp(0.5),) * 3)
