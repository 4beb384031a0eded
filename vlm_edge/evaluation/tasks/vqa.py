"""Visual question answering: the score of the VQA challenge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.evaluation.tasks.base import Rows, TaskEvaluation, decoded_images, readable_samples, samples_by_image
from vlm_edge.evaluation.vqa_score import vqa_score
from vlm_edge.processing.images import Pixels
from vlm_edge.runtime import VqaPipeline

QUESTIONS_AT_ONCE = 64


def answer_questions(
    pipeline: VqaPipeline, images: Mapping[Path, Pixels], asked: Mapping[Path, Sequence[Sample]]
) -> dict[str, str]:
    """Sample id -> answer, for all that is asked of these images.

    Each image is encoded once; questions of like length share a batch, so that little is padding.
    """
    features = pipeline.encode_images(list(images.values()))
    questions = [(row, sample) for row, path in enumerate(images) for sample in asked[path]]
    questions.sort(key=lambda question: len(question[1].text.split()))
    answers: dict[str, str] = {}
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        part = questions[start : start + QUESTIONS_AT_ONCE]
        given = pipeline.answer_batch(features[[row for row, _ in part]], [sample.text for _, sample in part])
        answers.update((sample.id, text) for (_, sample), text in zip(part, given, strict=True))
    return answers


def run(pipeline: VqaPipeline, dataset: Dataset, progress: Progress) -> Rows:
    """Answer every question."""
    asked = samples_by_image(dataset)
    unreadable: dict[Path, str] = {}
    answers: dict[str, str] = {}
    for images in decoded_images(dataset, progress, unreadable):
        answers |= answer_questions(pipeline, images, asked)
    samples = readable_samples(dataset, unreadable)
    return Rows(
        samples=samples,
        scores={"accuracy": [vqa_score(answers[sample.id], sample.answers) for sample in samples]},
        predictions=[answers[sample.id] for sample in samples],
        unreadable=unreadable,
    )


VQA = TaskEvaluation(kind="vqa", primary="VQA accuracy", pipelines=(VqaPipeline,), run=run)
