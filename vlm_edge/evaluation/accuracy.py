"""Accuracy of an engine on its task's test split, through the code that answers on the device."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from vlm_edge.core.artifact import digest_folder
from vlm_edge.core.stage import Progress, SilentProgress, TaskSpec
from vlm_edge.data import load_dataset
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.data.unreadable import check_unreadable
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.comparison import compare
from vlm_edge.evaluation.outcomes import Outcomes, Skipped
from vlm_edge.evaluation.vqa_score import vqa_score
from vlm_edge.processing.images import Pixels, read_image
from vlm_edge.runtime import DualEncoderPipeline, VqaPipeline, load_pipeline

__all__ = ["EVALUATOR_VERSION", "Outcomes", "compare", "evaluate"]

EVALUATOR_VERSION = "1"
"""Raised whenever the same engine and data would give other outcomes or another comparison."""
IMAGES_AT_ONCE = 16
QUESTIONS_AT_ONCE = 64

Images = dict[Path, list[Sample]]
Answers = Callable[[Sequence[Pixels], Sequence[Sequence[Sample]]], list[str]]
"""(decoded images, the samples of each) -> one prediction a sample, image by image."""


def evaluate(
    engine_folder: Path,
    task: TaskSpec,
    *,
    threads: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """Answer every sample of the test split (or a seeded draw of ``limit``) with the engine in ``engine_folder``.

    Each image is decoded and encoded once, for all its questions. An image that cannot be read is left out with its
    samples, which ``skipped`` names.

    Raises:
        VlmEdgeError: the engine or the data set cannot be loaded, they are of different kinds, or more than 1% of the
            images cannot be read.
    """
    dataset = load_dataset(task.data, "test", limit=limit)
    answers = _answers(engine_folder, task, dataset, threads)
    images: Images = defaultdict(list)
    for sample in dataset.samples:
        images[sample.image].append(sample)
    predictions: dict[str, str] = {}
    bad: dict[Path, str] = {}
    bars = progress or SilentProgress()
    with bars.bar(f"{dataset.name}: {len(dataset.samples):,} samples", len(images)) as bar:
        paths = list(images)
        for start in range(0, len(paths), IMAGES_AT_ONCE):
            part = paths[start : start + IMAGES_AT_ONCE]
            decoded = _decode(part, bad)
            check_unreadable(dataset.name, "test", {path.name: reason for path, reason in bad.items()}, len(paths))
            if decoded:
                samples = [images[path] for path in decoded]
                given = answers(list(decoded.values()), samples)
                flat = [sample for asked in samples for sample in asked]
                predictions.update((sample.id, text) for sample, text in zip(flat, given, strict=True))
            bar.advance(len(part))
    return _outcomes(dataset, predictions, bad, digest_folder(engine_folder))


def _answers(engine_folder: Path, task: TaskSpec, dataset: Dataset, threads: int | None) -> Answers:
    if dataset.kind != task.kind:
        raise VlmEdgeError(
            f"{task.data}: the data set is of kind {dataset.kind}, the recipe's task of kind {task.kind}",
            f"write `task: {{kind: {dataset.kind}, ...}}`, or name other data",
        )
    pipeline = load_pipeline(engine_folder, threads=threads)
    if isinstance(pipeline, VqaPipeline) and dataset.kind == "vqa":
        return vqa_answers(pipeline)
    if isinstance(pipeline, DualEncoderPipeline) and dataset.kind == "classification":
        return class_answers(pipeline, dataset)
    raise VlmEdgeError(
        f"{engine_folder}: a {pipeline.manifest.pipeline} pipeline cannot do a task of kind {dataset.kind}",
        "vqa needs a model that answers questions (BLIP), classification a dual encoder (CLIP)",
    )


def vqa_answers(pipeline: VqaPipeline) -> Answers:
    """Answers of a VQA pipeline; questions of like length share a batch, so that little is padding."""

    def answer(images: Sequence[Pixels], samples: Sequence[Sequence[Sample]]) -> list[str]:
        rows = [row for row, asked in enumerate(samples) for _ in asked]
        questions = [sample.text for asked in samples for sample in asked]
        order = sorted(range(len(questions)), key=lambda index: len(questions[index].split()))
        features = pipeline.encode_images(images)
        shuffled = [""] * len(questions)
        for start in range(0, len(order), QUESTIONS_AT_ONCE):
            part = order[start : start + QUESTIONS_AT_ONCE]
            given = pipeline.answer_batch(features[[rows[i] for i in part]], [questions[i] for i in part])
            for index, text in zip(part, given, strict=True):
                shuffled[index] = text
        return shuffled

    return answer


def class_answers(pipeline: DualEncoderPipeline, dataset: Dataset) -> Answers:
    """The most likely of the data set's labels for each image."""

    def answer(images: Sequence[Pixels], samples: Sequence[Sequence[Sample]]) -> list[str]:
        best = pipeline.classify(images, dataset.labels, dataset.prompts).argmax(axis=1)
        return [dataset.labels[index] for index, asked in zip(best, samples, strict=True) for _ in asked]

    return answer


def _decode(paths: Sequence[Path], bad: dict[Path, str]) -> dict[Path, Pixels]:
    """The images that can be read; the others go to ``bad`` with the reason."""
    decoded = {}
    for path in paths:
        try:
            decoded[path] = read_image(path)
        except VlmEdgeError as error:
            bad[path] = error.message
    return decoded


def _outcomes(dataset: Dataset, predictions: dict[str, str], bad: dict[Path, str], engine: str) -> Outcomes:
    folder = Path(os.path.commonpath([sample.image.parent for sample in dataset.samples]))
    names = {sample.image: sample.image.relative_to(folder).as_posix() for sample in dataset.samples}
    kept = [sample for sample in dataset.samples if sample.image not in bad]
    score = vqa_score if dataset.kind == "vqa" else _same_class
    return Outcomes(
        metric="vqa_accuracy" if dataset.kind == "vqa" else "top1",
        engine=engine,
        data=dataset.digest,
        ids=tuple(sample.id for sample in kept),
        groups=tuple(names[sample.image] for sample in kept),
        scores=tuple(score(predictions[sample.id], sample.answers) for sample in kept),
        predictions=tuple(predictions[sample.id] for sample in kept),
        slices=tuple(sample.slices for sample in kept),
        skipped=tuple(
            Skipped(id=sample.id, image=names[sample.image], reason=bad[sample.image].replace(f"{folder}/", ""))
            for sample in dataset.samples
            if sample.image in bad
        ),
    )


def _same_class(prediction: str, answers: Sequence[str]) -> float:
    return float(prediction in answers)
