"""Intervals against scipy, against published forms, and against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from vlm_edge.statistics.intervals import (
    mcnemar_exact,
    mean_score_interval,
    minimal_n,
    paired_change,
    percentile,
    percentile_interval,
    ratio_of_ratios,
    tango_interval,
    wilson_interval,
)

Z = stats.norm.ppf(0.975)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case):
    successes, n = case
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert wilson_interval(successes, n) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.9, 0.98, 0.99]))
def test_wilson_and_mcnemar_agree_with_statsmodels(first, second, confidence):
    n = first + second + 1
    expected = proportion_confint(first, n, alpha=1 - confidence, method="wilson")
    assert wilson_interval(first, n, confidence) == pytest.approx(expected, abs=1e-6)
    assert mcnemar_exact(first, second) == pytest.approx(mcnemar([[9, first], [second, 7]]).pvalue, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_agrees_with_scipys_binomial_test(lost, gained):
    expected = stats.binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert mcnemar_exact(lost, gained) == pytest.approx(expected, abs=1e-9)


def tango_statistic(lost, gained, n, delta):
    """Tango's score statistic with the restricted estimate found by numerical maximum likelihood."""

    def loss(share):
        same = 1 - 2 * share - delta
        terms = ((lost, share + delta), (gained, share), (n - lost - gained, same))
        return -sum(count * math.log(max(cell, 1e-300)) for count, cell in terms if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    best = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-14})
    share = min((low, high, best.x), key=loss)
    return (lost - gained - n * delta) / math.sqrt(n * (2 * share + delta * (1 - delta)))


@pytest.mark.parametrize(("lost", "gained", "n"), [(12, 5, 60), (1, 0, 44), (40, 31, 9673), (0, 7, 100), (30, 0, 30)])
def test_tangos_ends_are_where_the_score_test_rejects(lost, gained, n):
    interval = tango_interval(lost, gained, n)
    for end, z in ((interval.low, Z), (interval.high, -Z)):
        if abs(end) < 1 - 1e-9:
            assert tango_statistic(lost, gained, n, end) == pytest.approx(z, rel=1e-4)


def restricted_share(lost, gained, n, delta):
    """The share of gained pairs that is most likely when the drop is delta: where the likelihood's slope is 0."""
    low, room = max(0.0, -delta), (1 - abs(delta)) / 2  # above ``low``, so that no cell is a difference

    def slope(above):
        cells = ((lost, above + max(0.0, delta), 1), (gained, above + low, 1), (n - lost - gained, room - above, -1))
        return sum(count * sign / cell for count, cell, sign in cells if count)

    first, last = 1e-12 * room, (1 - 1e-12) * room
    if slope(first) <= 0:
        return low
    return low + optimize.brentq(slope, first, last, xtol=1e-16)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.98])
@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(12, 5, 60), (3, 1, 44), (40, 31, 9673), (2.5, 7.25, 100), (1, 0, 40), (0, 6, 500)]
)
def test_tango_agrees_with_a_score_test_solved_by_scipy(lost, gained, n, confidence):
    z, estimate = stats.norm.ppf((1 + confidence) / 2), (lost - gained) / n

    def distance(delta, wanted):
        share = restricted_share(lost, gained, n, delta)
        variance = n * (2 * share + delta * (1 - delta))
        return (lost - gained - n * delta) / math.sqrt(variance) - wanted

    expected = (
        optimize.brentq(distance, -1 + 1e-9, estimate - 1e-9, args=(z,), xtol=1e-13),
        optimize.brentq(distance, estimate + 1e-9, 1 - 1e-9, args=(-z,), xtol=1e-13),
    )
    assert tango_interval(lost, gained, n, confidence) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(*(st.floats(0.2, 50) for _ in range(2)), *(st.floats(0.001, 0.5) for _ in range(2)))
def test_a_ratio_of_two_log_normal_quantities_adds_their_variances(above, below, error_above, error_below):
    def measured(value, error):
        return value * math.exp(-Z * error), value, value * math.exp(Z * error)

    first, second = measured(above, error_above), measured(below, error_below)
    spread = math.hypot(error_above, error_below)
    expected = stats.lognorm.interval(0.95, spread, scale=above / below)
    assert ratio_of_ratios(first, second) == pytest.approx(expected, rel=1e-9)
    back = ratio_of_ratios(second, first)
    assert ratio_of_ratios(first, second) == pytest.approx((1 / back.high, 1 / back.low), rel=1e-9)


def test_a_ratio_to_an_exact_quantity_keeps_the_other_ones_interval():
    assert ratio_of_ratios((0.8, 1.0, 1.5), (2.0, 2.0, 2.0)) == pytest.approx((0.4, 0.75))


def test_tango_without_a_changed_pair_is_the_score_bound_and_not_a_point():
    interval = tango_interval(0, 0, 9673)
    assert interval == pytest.approx((-(Z**2) / (9673 + Z**2), Z**2 / (9673 + Z**2)), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(80, 5000))
def test_tango_mirrors_when_the_roles_are_swapped(lost, gained, n):
    there, back = tango_interval(lost, gained, n), tango_interval(gained, lost, n)
    assert there == pytest.approx((-back.high, -back.low), abs=1e-9)
    assert there.low <= (lost - gained) / n <= there.high


def clustered_scores(seed, images=400, questions=9):
    """Right or wrong for questions of images, with losses that gather on a few images."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(images), questions)
    before = (generator.random(len(groups)) < 0.97).astype(float)
    hit = np.repeat(generator.random(images) < 0.05, questions)
    after = np.where(hit & (generator.random(len(groups)) < 0.5), 0.0, before)
    return before, after, groups


def test_paired_change_is_scipys_bootstrap_over_images():
    before, after, groups = clustered_scores(3, images=150)
    asked, right_before, right_after = (np.bincount(groups, weights=v) for v in (np.ones_like(before), before, after))
    ours = paired_change(before, after, groups, seed=1, resamples=4000)
    for columns, statistic, interval in (
        (
            (asked, right_before, right_after),
            lambda n, b, a, axis: (b.sum(axis) - a.sum(axis)) / n.sum(axis),
            ours.drop,
        ),
        ((right_before, right_after), lambda b, a, axis: a.sum(axis) / b.sum(axis), ours.ratio),
    ):
        expected = stats.bootstrap(
            columns, statistic, paired=True, method="percentile", n_resamples=4000, rng=5
        ).confidence_interval
        width = expected.high - expected.low
        assert interval.low <= expected.low + 0.08 * width
        assert interval.high >= expected.high - 0.08 * width
        assert interval.high - interval.low < 1.35 * width


def test_paired_change_ignores_clusters_only_when_there_are_none():
    before, after, groups = clustered_scores(4)
    alone = paired_change(before, after, np.arange(len(before)), seed=1).drop
    together = paired_change(before, after, groups, seed=1).drop
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("images", "harmed", "lost", "draws", "resamples", "most"),
    [
        (300, 0.05, 0.4, 150, 500, 0.06),
        (1000, 0.002, 0.9, 200, 200, stats.binom.ppf(0.999, 200, 0.025) / 200),
    ],
    ids=["5% of the images lose 40% of their answers", "0.2% lose 90%: one set in seven has no such image"],
)
def test_the_upper_end_misses_the_true_drop_as_rarely_as_it_says(images, harmed, lost, draws, resamples, most):
    """About 2.5% of draws may have an interval that ends below the true drop; harm gathers on whole images of 10."""
    generator = np.random.default_rng(images)
    groups = np.repeat(np.arange(images), 10)
    missed = 0
    for draw in range(draws):
        hit = np.repeat(generator.random(images) < harmed, 10)
        after = 1.0 - (hit & (generator.random(len(groups)) < lost))
        drop = paired_change(np.ones(len(groups)), after, groups, seed=draw, resamples=resamples).drop
        missed += drop.high < harmed * lost
    assert missed / draws <= most


def test_the_drop_of_many_changed_images_has_the_cluster_robust_error():
    """Where many images changed, the interval is statsmodels' z interval with the error taken over images."""
    generator = np.random.default_rng(8)
    groups = np.repeat(np.arange(3000), generator.integers(5, 15, 3000))
    before = np.ones(len(groups))
    after = 1.0 - (generator.random(len(groups)) < generator.beta(1, 9, 3000)[groups])
    fit = OLS(before - after, np.ones(len(groups))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    (expected,) = fit.conf_int(0.05)
    drop = paired_change(before, after, groups, seed=1).drop
    assert tuple(drop) == pytest.approx(expected, abs=0.07 * (expected[1] - expected[0]))


def test_an_unchanged_candidate_has_an_interval_around_zero_and_a_question_is_no_more_evidence_than_its_image():
    scores, groups = np.ones(1000), np.repeat(np.arange(100), 10)
    drop, ratio = paired_change(scores, scores, groups, seed=0)
    assert drop == pytest.approx(tuple(tango_interval(0, 0, 100)))
    assert paired_change(scores, scores, np.arange(1000), seed=0).drop == pytest.approx(tango_interval(0, 0, 1000))
    assert paired_change(scores, scores, np.zeros(1000), seed=0).drop == pytest.approx(tango_interval(0, 0, 1))
    assert ratio is not None
    assert ratio == pytest.approx((1 - drop.high, 1 - drop.low))


def test_no_ratio_to_a_baseline_that_is_never_right():
    assert paired_change(np.zeros(20), np.ones(20), np.arange(20), seed=0).ratio is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 60))
def test_paired_change_holds_its_estimate_and_repeats(seed, images):
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, images, 200)
    before, after = generator.choice([0.0, 1 / 3, 1.0], (2, 200))
    first = paired_change(before, after, groups, seed=7, resamples=1000)
    assert first.drop.low <= np.mean(before - after) <= first.drop.high
    assert first == paired_change(before, after, groups, seed=7, resamples=1000)


def test_mean_score_interval_is_wilsons_or_wider():
    before, _, groups = clustered_scores(5)
    wilson = stats.binomtest(int(before.sum()), len(before)).proportion_ci(0.95, method="wilson")
    alone = mean_score_interval(before, np.arange(len(before)), seed=0)
    assert alone.low == pytest.approx(wilson.low, abs=5e-4)
    assert alone.high == pytest.approx(wilson.high, abs=5e-4)
    whole_images = np.repeat(np.random.default_rng(0).random(400) < 0.97, 9).astype(float)
    together = mean_score_interval(whole_images, groups, seed=0)
    assert together.high - together.low > 2 * (alone.high - alone.low)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=60), st.integers(1, 99))
def test_percentile_is_the_smallest_value_that_covers_the_share(values, percent):
    expected = next(v for v in sorted(values) if 100 * sum(x <= v for x in values) >= percent * len(values))
    assert percentile(values, percent / 100) == expected


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_percentile_interval_takes_the_binomial_ranks(quantile):
    for n in (minimal_n(quantile), 64, 500, 2048):
        if n < minimal_n(quantile):
            continue
        values = np.random.default_rng(n).permutation(n) + 1.0  # value = rank
        low = stats.binom.ppf(0.025, n, quantile)
        high = stats.binom.ppf(0.975, n, quantile) + 1
        assert percentile_interval(values, quantile) == (low, high)
        assert stats.binom.cdf(high - 1, n, quantile) - stats.binom.cdf(low - 1, n, quantile) >= 0.95


@pytest.mark.parametrize(("quantile", "n"), [(0.5, 6), (0.9, 36), (0.99, 368)])
def test_too_few_values_give_no_interval(quantile, n):
    assert minimal_n(quantile) == n
    assert percentile_interval(np.arange(n - 1), quantile) is None
    assert percentile_interval(np.arange(n), quantile) is not None
