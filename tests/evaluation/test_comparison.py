"""Paired comparison of outcomes: values, names, what is exact and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import Outcomes, compare, describe


def outcomes(scores, *, engine="candidate", data="d", questions=10, slices=None):
    n = len(scores)
    return Outcomes(
        task="vqa",
        engine=engine,
        data=data,
        ids=tuple(f"s{index}" for index in range(n)),
        groups=tuple(f"{index // questions}.png" for index in range(n)),
        scores={"accuracy": tuple(float(score) for score in scores)},
        predictions=("x",) * n,
        slices=tuple(slices or [()] * n),
    )


def named(measurements):
    return {measurement.metric: measurement for measurement in measurements}


def test_values_are_the_plain_means():
    generator = np.random.default_rng(0)
    before, after = generator.random(500) < 0.9, generator.random(500) < 0.8
    slices = [("color",) if index % 2 else ("shape", "rare") for index in range(500)]
    found = named(compare(outcomes(before, engine="b"), outcomes(after, slices=slices)))
    names = ("accuracy", "accuracy_drop_pt", "accuracy_ratio")
    parts = ("", "[color]", "[rare]", "[shape]")
    assert list(found) == [*(f"{name}{part}" for part in parts for name in names), "mcnemar_p"]
    assert found["accuracy"].value == pytest.approx(after.mean())
    assert found["accuracy_drop_pt"].value == pytest.approx(100 * (before.mean() - after.mean()))
    assert found["accuracy_ratio"].value == pytest.approx(after.mean() / before.mean())
    assert found["accuracy[color]"].value == pytest.approx(after[1::2].mean())
    assert found["accuracy_drop_pt[color]"].value == pytest.approx(100 * (before[1::2].mean() - after[1::2].mean()))
    assert found["accuracy_ratio[shape]"].value == pytest.approx(after[::2].mean() / before[::2].mean())
    assert found["accuracy_drop_pt[shape]"].n == 250
    del found["mcnemar_p"]
    assert all(m.low <= m.value <= m.high for m in found.values())
    assert all(m.low < m.high for m in found.values())


def test_an_engine_against_itself_has_lost_exactly_nothing():
    scores = np.random.default_rng(1).random(100) < 0.9
    found = named(compare(outcomes(scores, engine="same"), outcomes(scores, engine="same")))
    drop, ratio = found["accuracy_drop_pt"], found["accuracy_ratio"]
    assert (drop.low, drop.value, drop.high) == (0, 0, 0)
    assert (ratio.low, ratio.value, ratio.high) == (1, 1, 1)
    assert found["accuracy"].low < found["accuracy"].value < found["accuracy"].high


def test_another_engine_with_the_same_answers_may_still_have_lost_something():
    scores = [1.0] * 400
    drop = named(compare(outcomes(scores, engine="a", questions=1), outcomes(scores, questions=1)))["accuracy_drop_pt"]
    z2 = stats.norm.ppf(0.975) ** 2
    assert drop.value == 0
    assert drop.high == pytest.approx(100 * z2 / (400 + z2))


def test_questions_of_one_image_are_no_independent_evidence():
    after = np.repeat(np.random.default_rng(2).random(60) < 0.9, 10)
    together = named(compare(outcomes([1] * 600, engine="b"), outcomes(after)))["accuracy_drop_pt"]
    alone = named(compare(outcomes([1] * 600, engine="b", questions=1), outcomes(after, questions=1)))[
        "accuracy_drop_pt"
    ]
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_mcnemar_where_every_image_has_one_sample():
    before, after = [1] * 30 + [0] * 10, [0] * 12 + [1] * 20 + [0] * 8
    found = named(compare(outcomes(before, engine="b", questions=1), outcomes(after, questions=1)))
    assert found["mcnemar_p"].value == pytest.approx(stats.binomtest(12, 14, 0.5).pvalue)


def test_the_exact_test_counts_an_image_once():
    """3 images lose two answers of three, 1 gains one, 6 lose one and gain one: the sign test sees 3 against 1."""
    before = [1, 1, 0] * 3 + [0, 1, 1] + [1, 0, 1] * 6
    after = [0, 0, 0] * 3 + [1, 1, 1] + [0, 1, 1] * 6
    found = named(compare(outcomes(before, engine="b", questions=3), outcomes(after, questions=3)))["mcnemar_p"]
    assert found.value == pytest.approx(stats.binomtest(3, 4, 0.5).pvalue)
    assert found.n == 10


def test_partial_scores_have_no_exact_test():
    found = named(compare(outcomes([1, 0.6, 0], engine="b", questions=1), outcomes([1, 0, 0], questions=1)))
    assert "mcnemar_p" not in found


def test_an_engine_on_its_own_has_metrics_and_no_changes():
    after = outcomes([1, 0, 1, 1] * 10, slices=[("a",), ("b",)] * 20)
    own = describe(after)
    assert [each.metric for each in own] == ["accuracy", "accuracy[a]", "accuracy[b]"]
    paired = named(compare(outcomes([1] * 40, engine="b"), after))
    assert all(each == paired[each.metric] for each in own)


def test_other_metrics_on_either_side_are_refused():
    after = outcomes([1, 1])
    more = after.model_copy(update={"scores": {**after.scores, "top5": (1.0, 1.0)}})
    with pytest.raises(VlmEdgeError, match="the baseline has the metrics accuracy, top5, the candidate accuracy"):
        compare(more, after)


class TestColumns:
    def test_of_unequal_length(self):
        fields = outcomes([1, 1]).model_dump() | {"groups": ("a",), "tokens": ((1,),)}
        with pytest.raises(ValueError, match="groups, tokens must have one entry for each sample"):
            Outcomes.model_validate(fields)

    def test_begin_with_accuracy(self):
        fields = outcomes([1]).model_dump() | {"scores": {"top5": (1.0,)}}
        with pytest.raises(ValueError, match="the first of scores must be accuracy"):
            Outcomes.model_validate(fields)


def test_no_ratio_to_a_baseline_that_is_never_right():
    found = named(compare(outcomes([0] * 50, engine="b"), outcomes([1] * 50)))
    assert "accuracy_ratio" not in found
    assert found["accuracy_drop_pt"].value == -100


def test_one_seed_draws_one_interval():
    generator = np.random.default_rng(3)
    before, after = (outcomes(generator.random(300) < 0.8, engine=engine) for engine in "ab")
    assert compare(before, after, 5) == compare(before, after, 5)


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(VlmEdgeError, match="different data"):
        compare(outcomes([1, 1], data="a"), outcomes([1, 1], data="b"))
    with pytest.raises(VlmEdgeError, match="2 samples, the candidate 3; only in one: s2"):
        compare(outcomes([1, 1]), outcomes([1, 1, 0]))
    with pytest.raises(VlmEdgeError, match="no sample was evaluated"):
        compare(outcomes([]), outcomes([]))
