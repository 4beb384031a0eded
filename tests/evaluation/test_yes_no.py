"""POPE's rule for answers, and its metrics against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.evaluation.tasks.hallucination import answer_columns, f1, precision, recall, says_yes, yes_ratio


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("yes", True),
        ("Yes, there is a dog.", True),
        ("no", False),
        ("No", False),
        ("No, there is no dog.", False),
        ("There is not a dog in the image.", False),
        ("no,", False),
        ("Yes. But there is no cat.", True),  # the first sentence alone
        ("nothing of the kind", True),  # words, not their beginnings
        ("NO", True),  # as written there: No, no, not
        ("", True),
        ("a dog", True),
    ],
)
def test_answers_are_read_as_popes_own_script_reads_them(answer: str, yes: bool) -> None:
    assert says_yes(answer) is yes


def test_the_metrics_are_popes_formulas() -> None:
    said = [True] * 3 + [True] * 2 + [False] * 4 + [False] * 1
    true = [True] * 3 + [False] * 2 + [False] * 4 + [True] * 1
    counts = answer_columns(said, true).sum(axis=0)
    assert counts.tolist() == [3, 2, 4, 1]
    assert precision(counts) == 3 / 5
    assert recall(counts) == 3 / 4
    assert f1(counts) == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))
    assert yes_ratio(counts) == 5 / 10


def test_what_divides_by_nothing_is_not_defined() -> None:
    never = answer_columns([False, False], [False, False]).sum(axis=0)
    assert np.isnan([precision(never), recall(never), f1(never)]).all()
    assert yes_ratio(never) == 0
    assert np.isnan(yes_ratio(np.zeros(4)))


def test_many_counts_are_taken_at_once() -> None:
    counts = np.array([[[3, 2, 4, 1], [0, 0, 2, 0]]], float)
    assert precision(counts).shape == (1, 2)
    np.testing.assert_array_equal(precision(counts), [[3 / 5, np.nan]])
    np.testing.assert_array_equal(yes_ratio(counts), [[0.5, 0]])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_every_answer_is_counted_once(pairs: list[tuple[bool, bool]]) -> None:
    columns = answer_columns([said for said, _ in pairs], [true for _, true in pairs])
    assert (columns.sum(axis=1) == 1).all()
    true_positives, false_positives, _, false_negatives = columns.sum(axis=0)
    assert true_positives + false_negatives == sum(true for _, true in pairs)
    assert true_positives + false_positives == sum(said for said, _ in pairs)
