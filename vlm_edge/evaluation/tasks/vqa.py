"""Visual question answering: the score of the VQA challenge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.evaluation.tasks.base import (
    Query,
    Rows,
    TaskEvaluation,
    decoded_images,
    readable_samples,
    samples_by_image,
)
from vlm_edge.evaluation.vqa_score import vqa_score
from vlm_edge.processing.images import Pixels
from vlm_edge.runtime.capabilities import Answers

QUESTIONS_AT_ONCE = 64


@dataclass(frozen=True)
class Answered:
    """An entry a sample: the answer's text and its token ids (its place, where answers are chosen from a list).
    ``unreadable`` gives the reason by image."""

    samples: Sequence[Sample]
    predictions: Sequence[str]
    tokens: Sequence[Sequence[int]]
    unreadable: Mapping[Path, str]


def answer_questions(
    pipeline: Answers, images: Mapping[Path, Pixels], asked: Mapping[Path, Sequence[Sample]]
) -> dict[str, list[int]]:
    """Sample id -> token ids of the answer, for all that is asked of these images.

    Each image is encoded once; questions of like length share a batch, so that little is padding.
    """
    features = pipeline.encode_images(list(images.values()))
    questions = [(row, sample) for row, path in enumerate(images) for sample in asked[path]]
    questions.sort(key=lambda question: len(question[1].text.split()))
    answers: dict[str, list[int]] = {}
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        part = questions[start : start + QUESTIONS_AT_ONCE]
        given = pipeline.answer_ids(features[[row for row, _ in part]], [sample.text for _, sample in part])
        answers.update((sample.id, ids) for (_, sample), ids in zip(part, given, strict=True))
    return answers


def answer_dataset(pipeline: Answers, dataset: Dataset, progress: Progress) -> Answered:
    """Answer every question whose image can be read."""
    asked = samples_by_image(dataset)
    unreadable: dict[Path, str] = {}
    answers: dict[str, list[int]] = {}
    for images in decoded_images(pipeline.manifest.image, dataset, progress, unreadable):
        answers |= answer_questions(pipeline, images, asked)
    samples = readable_samples(dataset, unreadable)
    tokens = [answers[sample.id] for sample in samples]
    return Answered(samples, [pipeline.decode(ids) for ids in tokens], tokens, unreadable)


def run(pipeline: Answers, dataset: Dataset, progress: Progress) -> Rows:
    """Answer every question."""
    answers = answer_dataset(pipeline, dataset, progress)
    given = zip(answers.predictions, answers.samples, strict=True)
    return Rows(
        samples=answers.samples,
        scores={"accuracy": [vqa_score(text, sample.answers) for text, sample in given]},
        predictions=answers.predictions,
        unreadable=answers.unreadable,
        tokens=answers.tokens,
    )


def answer(pipeline: Answers, query: Query) -> str:
    """One question, end to end."""
    return pipeline.answer(query.image, query.text)


VQA = TaskEvaluation(kind="vqa", primary="VQA accuracy", needs=("answers",), run=run, answer=answer)
