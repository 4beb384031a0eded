"""The score of one answer, against the challenge's rules spelled out the long way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.evaluation.tasks.vqa import normalise_answer, vqa_score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The Red\tcar\n", "red car"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("ten", "10"),
        ("an apple.", "apple"),
        ("1.5", "1.5"),
        ("U.S.A.", "usa"),
        ("100,978", "100978"),
        ("red, white", "red white"),
        ("black/white", "black white"),
        ("yes!", "yes"),
        ("girl's", "girl's"),
        ("10:30", "10:30"),
        ("don't know", "dont know"),
        ("could've", "couldve"),
        ("5 o’clock", "5 oclock"),
        ("I'm, he's & y'all'd've", "im hes yalldve"),
        ("let's", "let's"),
        ("-", ""),
        ("", ""),
    ],
)
def test_the_listed_normalisations(text, expected):
    assert normalise_answer(text) == expected


@given(st.text(max_size=40))
def test_normalising_twice_changes_no_more_than_words_may_uncover(text):
    once = normalise_answer(text)
    assert once == once.lower().strip()
    assert not set(once.split()) & {"a", "an", "the", "one", "none"}


@given(
    st.lists(st.sampled_from(["red", "Red", "blue", "the red", "2"]), min_size=10, max_size=10),
    st.sampled_from(["red", "two"]),
)
def test_ten_annotators_are_left_out_one_by_one(answers, prediction):
    given_answer = normalise_answer(prediction)
    scores = []
    for left_out in range(10):
        others = [answer for index, answer in enumerate(answers) if index != left_out]
        scores.append(min(1.0, sum(normalise_answer(answer) == given_answer for answer in others) / 3))
    assert vqa_score(prediction, answers) == pytest.approx(sum(scores) / 10)


def test_one_annotator_is_an_exact_match():
    assert vqa_score("The circle.", ("circle",)) == 1.0
    assert vqa_score("triangle", ("circle",)) == 0.0


@pytest.mark.parametrize("annotators", [1, 2, 3, 4, 10])
def test_full_agreement_is_one_and_none_is_zero(annotators):
    assert vqa_score("red", ["red"] * annotators) == 1.0
    assert vqa_score("blue", ["red"] * annotators) == 0.0
