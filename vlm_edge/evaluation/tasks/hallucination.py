"""Object hallucination in the manner of POPE: "is there a dog in the image?", yes or no."""

from __future__ import annotations

from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset
from vlm_edge.evaluation.outcomes import Outcomes
from vlm_edge.evaluation.tasks.base import Floats, Rows, Summary, TaskEvaluation
from vlm_edge.evaluation.tasks.vqa import answer, answer_dataset
from vlm_edge.evaluation.yes_no import answer_columns, f1, precision, recall, says_yes, yes_ratio
from vlm_edge.runtime.capabilities import Answers


def run(pipeline: Answers, dataset: Dataset, progress: Progress) -> Rows:
    """Answer every question; what an answer says is read as POPE reads it."""
    answers = answer_dataset(pipeline, dataset, progress)
    expected = [sample.answers[0] for sample in answers.samples]
    right = [says_yes(text) == (answer == "yes") for text, answer in zip(answers.predictions, expected, strict=True)]
    return Rows(
        samples=answers.samples,
        scores={"accuracy": [float(each) for each in right]},
        predictions=answers.predictions,
        unreadable=answers.unreadable,
        expected=expected,
        tokens=answers.tokens,
    )


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
