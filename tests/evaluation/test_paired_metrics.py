"""Metrics that are no mean of scores, scales, and names; references are counts by numpy, resampled the plain way."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_edge.evaluation.paired_metrics import MeanMetric, SummaryMetric, suffixed
from vlm_edge.evaluation.tasks.base import Scale


def f1(sums):
    """2TP / (2TP + FP + FN) of sums (..., 3)."""
    hits, false, missed = np.moveaxis(sums, -1, 0)
    whole = 2 * hits + false + missed
    return np.divide(2 * hits, whole, out=np.full_like(whole, np.nan), where=whole > 0)


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
    return SummaryMetric("f1[adversarial]", f1, counts(before, true), counts(after, true), groups, same, 0)


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


def test_scores_on_a_scale_are_those_of_shares_stretched():
    generator = np.random.default_rng(1)
    before, after, groups = generator.random(200), generator.random(200), np.arange(200)
    share = MeanMetric("accuracy", before, after, groups, False, 0, Scale())
    score = MeanMetric("accuracy", 10 * before, 10 * after, groups, False, 0, Scale(10.0, "CIDEr"))
    (own,), (stretched,) = share.own(), score.own()
    assert (stretched.low, stretched.value, stretched.high) == pytest.approx(
        (10 * own.low, 10 * own.value, 10 * own.high)
    )
    assert stretched.unit == "CIDEr"
    (drop, ratio), (long_drop, same_ratio) = share.changes(), score.changes()
    assert (long_drop.low, long_drop.high) == pytest.approx((10 * drop.low, 10 * drop.high))
    assert (same_ratio.low, same_ratio.value, same_ratio.high) == pytest.approx((ratio.low, ratio.value, ratio.high))
