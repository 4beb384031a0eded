"""Intervals of times over rounds: against scipy, and by simulation with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlm_edge.numerics.statistics import percentile, percentile_interval
from vlm_edge.numerics.timing import (
    fewest_queries,
    geometric_mean,
    round_percentile,
    round_ratio,
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
    luck = generator.lognormal(0, 0.5, 6)
    baseline = [factor * np.arange(1.0, 101) for factor in luck]
    candidate = [factor * np.arange(1.0, 101) / 2 for factor in luck]
    for quantile in (0.5, 0.9):
        assert tuple(round_ratio(baseline, candidate, quantile)) == pytest.approx((2, 2, 2))
    assert round_ratio(baseline[:1], candidate[:1], 0.5) is None
