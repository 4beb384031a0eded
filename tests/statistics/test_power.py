"""The smallest drop that a set resolves, against the intervals themselves and scipy's binomial."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.statistics.intervals import (
    mean_score_interval,
    paired_change,
    samples_for_drop,
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
    if n > 1:
        fewer, less_share = unchanged(n - 1)
        assert fewer.drop.high > bound
        assert less_share.low < 1 - bound


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 100_000))
def test_smallest_drop_is_what_that_many_samples_can_pass(n):
    bound = smallest_drop(n)
    assert samples_for_drop(bound * (1 + 1e-9)) <= n < samples_for_drop(bound * (1 - 1e-3)) + 1


def test_no_set_can_show_that_nothing_at_all_was_lost():
    assert samples_for_drop(0.0) is None
