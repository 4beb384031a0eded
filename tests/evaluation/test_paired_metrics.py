"""Metrics that are no mean of shares, and names; references are counts by numpy, resampled the plain way."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_edge.evaluation.paired_metrics import SummaryMetric, score_metric, suffixed


def f1(sums):
    """2TP / (2TP + FP + FN) of sums (..., 3)."""
    hits, false, missed = np.moveaxis(sums, -1, 0)
    whole = 2 * hits + false + missed
    return np.divide(2 * hits, whole, out=np.full_like(whole, np.nan), where=whole > 0)


KINDS = (np.array([[1.0, 0, 0], [0, 0, 1]]), np.array([[0.0, 1, 0], [0, 0, 0]]))  # yes is right: a hit or a miss


def counts(said, true):
    return np.stack([said & true, said & ~true, ~said & true], axis=1).astype(float)


@pytest.fixture
def answers():
    generator = np.random.default_rng(0)
    true = generator.random(600) < 0.5
    before = np.where(generator.random(600) < 0.9, true, ~true)
    after = np.where(generator.random(600) < 0.8, true, ~true)
    return true, before, after


def metric(true, before, after, *, same=False):
    groups = np.arange(len(true)) // 6
    columns = counts(before, true), counts(after, true)
    return SummaryMetric("f1[adversarial]", f1, *columns, KINDS, groups, same, 0)


def test_a_suffix_goes_before_the_part():
    assert suffixed("accuracy", "_drop_pt") == "accuracy_drop_pt"
    assert suffixed("recall_at_1[image-to-text][color]", "_ratio") == "recall_at_1_ratio[image-to-text][color]"


def test_f1_its_drop_and_its_ratio(answers):
    true, before, after = answers
    found = metric(true, before, after)
    (own,), (drop, ratio) = found.own(), found.changes()
    old, new = (2 * (said & true).sum() / (said.sum() + true.sum()) for said in (before, after))
    assert [each.metric for each in (own, drop, ratio)] == [
        "f1[adversarial]", "f1_drop_pt[adversarial]", "f1_ratio[adversarial]",
    ]  # fmt: skip
    assert [each.value for each in (own, drop, ratio)] == pytest.approx([new, 100 * (old - new), new / old])
    generator, groups = np.random.default_rng(3), np.arange(600).reshape(100, 6)
    draws = []
    for _ in range(2000):
        rows = groups[generator.integers(100, size=100)].ravel()
        each = [2 * (said & true)[rows].sum() / (said[rows].sum() + true[rows].sum()) for said in (before, after)]
        draws.append((each[1], 100 * (each[0] - each[1]), each[1] / each[0]))
    for each, column in zip((own, drop, ratio), np.array(draws).T, strict=True):
        assert each.low < each.value < each.high
        assert each.high - each.low == pytest.approx(np.diff(np.quantile(column, [0.025, 0.975]))[0], rel=0.15)


def test_the_same_answers_of_another_engine_may_hide_z2_changed_groups():
    """30 polls of 5 questions, none changed: the ends are where z^2 more polls would have been hits, then misses."""
    true = np.arange(150) % 2 == 0
    groups, z2 = np.arange(150) // 5, 1.959964**2
    columns = counts(true, true)
    drop, ratio = SummaryMetric("f1", f1, columns, columns, KINDS, groups, False, 0).changes()
    before = 1.0
    after = 2 * 75 / (2 * 75 + 5 * z2)
    assert (drop.value, drop.high) == pytest.approx((0, 100 * (before - after)))
    assert drop.low < 0
    assert ratio.low == pytest.approx(after)


def test_what_is_not_defined_is_not_measured():
    never = np.zeros(12, bool)
    found = metric(never, never, never)
    assert found.own() == found.changes() == []
    assert metric(never, never, never, same=True).changes() == []


def test_an_engine_against_itself_lost_nothing(answers):
    true, before, _ = answers
    drop, ratio = metric(true, before, before, same=True).changes()
    assert (drop.low, drop.value, drop.high) == (0, 0, 0)
    assert (ratio.low, ratio.value, ratio.high) == (1, 1, 1)


def cider(before, after, groups, same=False):
    return score_metric("cider[pets]", before, after, groups, same, 0, "CIDEr")


def test_scores_that_are_no_shares_are_resampled_by_group():
    generator = np.random.default_rng(1)
    quality = generator.gamma(2, 0.5, 100)
    before = (quality[:, None] + generator.normal(0, 0.1, (100, 2))).ravel()
    after = before - 0.05 + generator.normal(0, 0.2, 200)
    found = cider(before, after, np.arange(200) // 2)
    (own,), (drop, ratio) = found.own(), found.changes()
    assert (own.metric, own.unit, own.n) == ("cider[pets]", "CIDEr", 200)
    assert [each.metric for each in (drop, ratio)] == ["cider_drop_pt[pets]", "cider_ratio[pets]"]
    expected = [after.mean(), 100 * (before.mean() - after.mean()), after.mean() / before.mean()]
    assert [each.value for each in (own, drop, ratio)] == pytest.approx(expected)
    draws = []
    for _ in range(2000):
        rows = (2 * generator.integers(100, size=100)[:, None] + [0, 1]).ravel()
        old, new = before[rows].mean(), after[rows].mean()
        draws.append((new, 100 * (old - new), new / old))
    for each, column in zip((own, drop, ratio), np.array(draws).T, strict=True):
        assert each.low < each.value < each.high
        assert each.high - each.low == pytest.approx(np.diff(np.quantile(column, [0.025, 0.975]))[0], rel=0.15)


def test_the_same_scores_of_another_engine_leave_what_so_few_images_cannot_show():
    """z^2 / (n + z^2) of the images, each at the cost of the mean score."""
    before = np.linspace(0.2, 1.8, 50)
    drop, ratio = cider(before, before, np.arange(50)).changes()
    unseen = 1.959964**2 / (50 + 1.959964**2)
    assert (drop.low, drop.value, drop.high) == pytest.approx((-100 * unseen, 0, 100 * unseen))  # the mean is 1
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1 - unseen, 1, 1 / (1 - unseen)))


def test_scores_of_one_engine_are_the_same():
    before = np.array([0.5, 1.0, 0.0, 2.0])
    drop, ratio = cider(before, before, np.arange(4), same=True).changes()
    assert (drop.low, drop.value, drop.high) == (0, 0, 0)
    assert (ratio.low, ratio.value, ratio.high) == (1, 1, 1)
    (only,) = cider(np.zeros(4), before, np.arange(4)).changes()  # no ratio to nothing
    assert only.metric == "cider_drop_pt[pets]"
