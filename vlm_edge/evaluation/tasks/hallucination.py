"""Object hallucination in the manner of POPE: "is there a dog in the image?", yes or no.

Li, Du, Zhou et al., Evaluating Object Hallucination in Large Vision-Language Models (POPE, arXiv:2305.10355), section
4, and its ``evaluate.py``. Yes is positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset
from vlm_edge.evaluation.outcomes import Outcomes
from vlm_edge.evaluation.tasks.base import Floats, Rows, Summary, TaskEvaluation
from vlm_edge.evaluation.tasks.vqa import answer, answer_dataset
from vlm_edge.runtime.capabilities import Answers

NO_WORDS = frozenset({"No", "no", "not"})


def says_yes(answer: str) -> bool:
    """POPE's rule: "no" if a word of the first sentence is No, no or not; anything else, an empty answer too, is yes.

    The first sentence ends at the first period; commas are left out, and words are what single spaces separate.
    """
    first = answer.partition(".")[0].replace(",", "")
    return NO_WORDS.isdisjoint(first.split(" "))


def answer_columns(said: Sequence[bool], true: Sequence[bool]) -> Floats:
    """(answers, 4): 1 in the column of each answer's kind, 0 in the others; True is yes.

    The columns are true positives, false positives, true negatives, false negatives. Their sums are the counts that
    the metrics below take, (..., 4) -> (...).
    """
    yes, right = np.asarray(said, bool), np.asarray(said, bool) == np.asarray(true, bool)
    return np.stack([yes & right, yes & ~right, ~yes & right, ~yes & ~right], axis=-1).astype(np.float64)


def precision(counts: Floats) -> Floats:
    """The share of yes answers that are right; NaN if no answer is yes."""
    true_positives, false_positives, _, _ = np.moveaxis(counts, -1, 0)
    return _share(true_positives, true_positives + false_positives)


def recall(counts: Floats) -> Floats:
    """The share of what is there that is said to be; NaN if nothing is there."""
    true_positives, _, _, false_negatives = np.moveaxis(counts, -1, 0)
    return _share(true_positives, true_positives + false_negatives)


def f1(counts: Floats) -> Floats:
    """The harmonic mean of precision and recall, 2TP / (2TP + FP + FN); NaN if nothing is there or said to be."""
    true_positives, false_positives, _, false_negatives = np.moveaxis(counts, -1, 0)
    return _share(2 * true_positives, 2 * true_positives + false_positives + false_negatives)


def yes_ratio(counts: Floats) -> Floats:
    """The share of answers that say yes; NaN if there are none."""
    return _share(counts[..., 0] + counts[..., 1], counts.sum(axis=-1))


def _share(part: Floats, whole: Floats) -> Floats:
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0))


def run(pipeline: Answers, dataset: Dataset, progress: Progress) -> Rows:
    """Answer every question; what an answer says is read as POPE reads it."""
    rows = answer_dataset(pipeline, dataset, progress)
    expected = [sample.answers[0] for sample in rows.samples]
    right = [says_yes(text) == (answer == "yes") for text, answer in zip(rows.predictions, expected, strict=True)]
    return replace(rows, scores={"accuracy": [float(each) for each in right]}, expected=expected)


def _columns(outcomes: Outcomes) -> Floats:
    expected = outcomes.expected or ()
    return answer_columns([says_yes(text) for text in outcomes.predictions], [answer == "yes" for answer in expected])


_KINDS = (answer_columns([True, False], [True, True]), answer_columns([True, False], [False, False]))

HALLUCINATION = TaskEvaluation(
    kind="hallucination",
    primary="yes-or-no accuracy",
    needs=("answers",),
    run=run,
    answer=answer,
    summaries=(
        Summary("precision", _columns, precision, _KINDS),
        Summary("recall", _columns, recall, _KINDS),
        Summary("f1", _columns, f1, _KINDS),
        Summary("yes_ratio", _columns, yes_ratio, _KINDS),
    ),
)
