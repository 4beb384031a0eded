"""What a set can resolve: against the very intervals, against scipy's binomial and statsmodels' power of a z test."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import normal_power

from vlm_edge.statistics.intervals import mean_score_interval, paired_change
from vlm_edge.statistics.power import (
    samples_for_drop,
    samples_for_ratio,
    samples_for_share,
    samples_to_tell,
    smallest_drop,
)


def unchanged(n):
    """The intervals of a candidate that answers n independent samples as the baseline does, all right."""
    scores, groups = np.ones(n), np.arange(n)
    return (
        paired_change(scores, scores, groups, seed=0, resamples=50),
        mean_score_interval(scores, groups, seed=0, resamples=50),
    )


def test_ten_samples_cannot_pass_a_drop_of_five_points_and_73_can():
    assert smallest_drop(10) == pytest.approx(0.2775, abs=1e-4)
    assert samples_for_drop(0.05) == 73
    assert unchanged(72)[0].drop.high > 0.05 >= unchanged(73)[0].drop.high
    assert samples_for_drop(0.01) == 381


@settings(max_examples=30, deadline=None)
@given(st.floats(0.002, 0.9))
def test_the_fewest_samples_are_those_whose_intervals_can_pass(bound):
    n = samples_for_drop(bound)
    change, share = unchanged(n)
    assert change.drop.high <= bound + 1e-9
    assert change.ratio.low >= 1 - bound - 1e-9
    assert share.low >= 1 - bound - 1e-9
    assert samples_for_ratio(1 - bound) == pytest.approx(n, abs=1)
    assert samples_for_share(1 - bound) == pytest.approx(n, abs=1)
    if n > 1:
        fewer, less_share = unchanged(n - 1)
        assert fewer.drop.high > bound
        assert less_share.low < 1 - bound


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 100_000))
def test_smallest_drop_is_what_that_many_samples_can_pass(n):
    bound = smallest_drop(n)
    assert samples_for_drop(bound * (1 + 1e-9)) <= n < samples_for_drop(bound * (1 - 1e-3)) + 1


@pytest.mark.parametrize("needed", [samples_for_drop(0.0), samples_for_ratio(1.0), samples_for_share(1.0)])
def test_no_set_can_show_that_nothing_at_all_was_lost(needed):
    assert needed is None


def power_of_z_test(distance, spread, n):
    """The chance that the lower end of a two-sided 95% interval clears a bound, from statsmodels."""
    return normal_power(distance / spread, n, 0.025, alternative="larger", sigma=1.0)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.001, 0.05), st.floats(1.2, 3), st.floats(1, 4), st.floats(1, 6))
def test_samples_to_tell_gives_the_asked_power(bound, factor, churn, effect):
    drop = factor * bound
    changed = min(1.0, churn * drop)
    needed = samples_to_tell(bound, drop, changed, effect)
    spread = math.sqrt((changed - drop**2) * effect)
    assert power_of_z_test(drop - bound, spread, needed) >= 0.95 - 1e-9
    assert power_of_z_test(drop - bound, spread, needed - 1) < 0.95


def test_samples_to_tell_with_the_real_interval():
    """A drop of 4 points against a bound of 2: of independent samples, planned for 99%, nearly every set tells."""
    n = samples_to_tell(0.02, 0.04, 0.06, sure=0.99)
    generator = np.random.default_rng(5)
    found = 0
    for seed in range(60):
        change = generator.choice([1.0, -1.0, 0.0], n, p=[0.05, 0.01, 0.94])
        before = np.where(change == 0, 1.0, (change + 1) / 2)
        found += paired_change(before, before - change, np.arange(n), seed=seed, resamples=300).drop.low > 0.02
    assert found >= stats.binom.ppf(1e-4, 60, 0.99)
