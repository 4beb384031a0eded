"""Yes or no: what a generated answer says, and what a share of yes-and-no questions comes to.

Li, Du, Zhou et al., Evaluating Object Hallucination in Large Vision-Language Models (POPE, arXiv:2305.10355), section
4, and its ``evaluate.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

NO_WORDS = frozenset({"No", "no", "not"})


def says_yes(answer: str) -> bool:
    """POPE's rule: "no" if a word of the first sentence is No, no or not; anything else, an empty answer too, is yes.

    The first sentence ends at the first period; commas are left out, and words are what single spaces separate.
    """
    first = answer.partition(".")[0].replace(",", "")
    return NO_WORDS.isdisjoint(first.split(" "))


class Counts(NamedTuple):
    """Answers by what they say and what is true; yes is positive."""

    true_positives: float
    false_positives: float
    true_negatives: float
    false_negatives: float


def count_answers(said: Sequence[bool], true: Sequence[bool]) -> Counts:
    """Count answers (True is yes) against labels."""
    pairs = list(zip(said, true, strict=True))
    return Counts(*(float(pairs.count(kind)) for kind in ((True, True), (True, False), (False, False), (False, True))))


def precision(counts: Counts) -> float | None:
    """The share of yes answers that are right; None if no answer is yes."""
    return _share(counts.true_positives, counts.true_positives + counts.false_positives)


def recall(counts: Counts) -> float | None:
    """The share of things that are there and are said to be; None if nothing is there."""
    return _share(counts.true_positives, counts.true_positives + counts.false_negatives)


def f1(counts: Counts) -> float | None:
    """The harmonic mean of precision and recall, 2TP / (2TP + FP + FN); None if nothing is there or said to be."""
    doubled = 2 * counts.true_positives
    return _share(doubled, doubled + counts.false_positives + counts.false_negatives)


def yes_ratio(counts: Counts) -> float | None:
    """The share of answers that say yes. Half is what a balanced set should get; more is a bias to yes."""
    return _share(counts.true_positives + counts.false_positives, sum(counts))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
