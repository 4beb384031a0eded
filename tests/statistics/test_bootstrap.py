"""Bootstrap intervals of functions of sums, against scipy's bootstrap, Wilson's and Tango's ends, and known truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vlm_edge.statistics.intervals import bootstrap_interval, tango_interval, wilson_interval


def f1(counts):
    """counts (..., 4): true positives, false positives, true negatives, false negatives."""
    positive = 2 * counts[..., 0] + counts[..., 1] + counts[..., 3]
    return np.divide(2 * counts[..., 0], positive, out=np.full(positive.shape, np.nan), where=positive > 0)


def polls(seed, images=120, questions=6):
    """Each image's counts for two engines that answer alike mostly: (images, 8)."""
    generator = np.random.default_rng(seed)
    truth = generator.random((images, questions)) < 0.5
    wrong = generator.random((images, questions)) < generator.beta(1, 9, (images, 1))
    baseline = truth ^ wrong
    candidate = baseline ^ (generator.random((images, questions)) < 0.03)
    kinds = [(said & truth, said & ~truth, ~said & ~truth, ~said & truth) for said in (baseline, candidate)]
    return np.stack([kind.sum(axis=1) for own in kinds for kind in own], axis=1).astype(float)


def change(sums):
    return f1(sums[..., :4]) - f1(sums[..., 4:])


def ratio(sums):
    return f1(sums[..., 4:]) / f1(sums[..., :4])


@pytest.mark.parametrize("statistic", [lambda sums: f1(sums[..., :4]), change, ratio])
def test_f1_and_its_changes_agree_with_scipys_bootstrap(statistic):
    sums = polls(3)
    expected = stats.bootstrap(
        tuple(sums.T),
        lambda *columns, axis: statistic(np.stack([column.sum(axis) for column in columns], axis=-1)),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=6000,
        rng=5,
    ).confidence_interval
    ours = bootstrap_interval(statistic, sums, seed=1)
    assert ours == pytest.approx((expected.low, expected.high), abs=0.06 * (expected.high - expected.low))


def test_a_mean_of_unbounded_scores_agrees_with_students_interval():
    scores = np.random.default_rng(0).gamma(2, 0.6, 400)
    sums = np.stack([np.ones(400), scores], axis=1)
    low, high = stats.t.interval(0.95, 399, scores.mean(), stats.sem(scores))
    ours = bootstrap_interval(lambda each: each[..., 1] / each[..., 0], sums, seed=0)
    assert ours == pytest.approx((low, high), abs=0.06 * (high - low))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20_000))
def test_what_was_not_seen_ends_where_wilsons_and_tangos_do(n):
    sums = np.stack([np.full(2, n / 2), np.full(2, n / 2), np.full(2, n / 2)], axis=1)
    share = bootstrap_interval(
        lambda each: each[..., 1] / each[..., 0], sums, seed=0, unseen=np.array([[1.0, 0, 0]]), resamples=20
    )
    assert share == pytest.approx(wilson_interval(n, n), abs=1e-9)
    drop = bootstrap_interval(
        lambda each: (each[..., 1] - each[..., 2]) / each[..., 0],
        sums,
        seed=0,
        unseen=np.array([[1.0, 1, 0], [1.0, 0, 1]]),
        resamples=20,
    )
    assert drop == pytest.approx(tango_interval(0, 0, n), abs=1e-9)


def test_an_unchanged_f1_is_no_point_when_the_unseen_is_told():
    sums = polls(4)
    same = np.concatenate([sums[:, :4], sums[:, :4]], axis=1)
    eye = np.eye(4)
    unseen = np.array([[*eye[i], *eye[j]] for i in range(4) for j in range(4)])
    assert bootstrap_interval(change, same, seed=0) == (0.0, 0.0)
    told = bootstrap_interval(change, same, seed=0, unseen=unseen)
    assert told.low < -0.001
    assert told.high > 0.001


def test_draws_without_a_value_are_left_out():
    """One image of 30 has all the positives: two draws in five have none, and F1 is 1 in the others."""
    sums = np.zeros((30, 4))
    sums[:, 2] = 5
    sums[0] = (3, 0, 2, 0)
    assert bootstrap_interval(f1, sums, seed=0) == (1.0, 1.0)
    nowhere = bootstrap_interval(f1, np.where(np.arange(4) == 2, sums, 0.0), seed=0)
    assert np.isnan(nowhere).all()


def test_f1s_interval_covers_the_truth_as_often_as_it_says():
    truth = f1(polls(99, images=200_000)[:, :4].sum(axis=0))
    missed = 0
    for seed in range(200):
        low, high = bootstrap_interval(f1, polls(seed)[:, :4], seed=seed, resamples=600)
        missed += not low <= truth <= high
    assert missed <= stats.binom.ppf(0.9999, 200, 0.06)
