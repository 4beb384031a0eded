"""Classification: is the right class the first, or among the first five?

Zero-shot by a dual encoder, whose classes are embedded texts, or by a vision tower with a class head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_edge.backends.base import Array
from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.outcomes import Embeddings, Matrix
from vlm_edge.evaluation.tasks.base import Query, Rows, TaskEvaluation, every_image
from vlm_edge.runtime.capabilities import Classifies, ZeroShot, zero_shot

TOP = 5


def run(pipeline: Any, dataset: Dataset, progress: Progress) -> Rows:
    """Rank the classes for every image; of equal classes, the earlier goes first.

    ``top5`` is given when there are more than five classes. Where a broken engine gives no finite numbers, no class is
    right. A dual encoder ranks by the cosine of the two embeddings, a class's being the mean over its prompts.

    Raises:
        VlmEdgeError: a vision tower has no class head, or its classes lack some of the data set's.
    """
    if zero_shot(pipeline):
        return _zero_shot(pipeline, dataset, progress)
    return _by_head(pipeline, dataset, progress)


def _zero_shot(pipeline: ZeroShot, dataset: Dataset, progress: Progress) -> Rows:
    classes = pipeline.label_embeddings(dataset.labels, dataset.prompts)
    embedded, samples, rows, unreadable = every_image(pipeline.embed_images, pipeline.manifest.image, dataset, progress)
    scores, predictions = _ranked((embedded @ classes.T)[rows], dataset.labels, samples)
    position = {label: index for index, label in enumerate(dataset.labels)}
    embeddings = Embeddings(
        image=Matrix.of(embedded),
        text=Matrix.of(classes),
        image_rows=tuple(rows),
        text_rows=tuple((position[sample.answers[0]],) for sample in samples),
    )
    return Rows(samples, scores, predictions, unreadable, embeddings=embeddings)


def _by_head(pipeline: Classifies, dataset: Dataset, progress: Progress) -> Rows:
    labels = pipeline.manifest.labels or ()
    if lacking := [label for label in dataset.labels if label not in labels]:
        known = ", ".join(labels[:5]) or "none"
        raise VlmEdgeError(
            f"{dataset.name}: the model has no class {', '.join(lacking[:5])}; it has: {known}",
            "name the data set's classes as the model's config.json (id2label) does",
        )
    likely, samples, rows, unreadable = every_image(pipeline.classify, pipeline.manifest.image, dataset, progress)
    scores, predictions = _ranked(likely[rows], labels, samples)
    return Rows(samples, scores, predictions, unreadable)


def _ranked(
    similar: Array, labels: Sequence[str], samples: Sequence[Sample]
) -> tuple[dict[str, list[float]], list[str]]:
    """Scores and predictions from (samples, labels), the larger the likelier."""
    position = {label: index for index, label in enumerate(labels)}
    right = np.array([position[sample.answers[0]] for sample in samples])
    ranking = np.argsort(-similar, axis=1, kind="stable")
    places = (ranking == right[:, None]).argmax(axis=1)
    places[~np.isfinite(similar).all(axis=1)] = len(labels)
    scores = {"accuracy": (places == 0).astype(float).tolist()}
    if len(labels) > TOP:
        scores[f"top{TOP}"] = (places < TOP).astype(float).tolist()
    return scores, [labels[first] for first in ranking[:, 0]]


def answer(pipeline: Any, query: Query) -> Array:
    """One image, end to end: the probabilities of its classes, or its embedding where the model has no class head."""
    images = [query.image]
    if zero_shot(pipeline):
        return pipeline.classify(images, query.labels, query.prompts)
    given: Array = pipeline.classify(images) if pipeline.manifest.labels else pipeline.embed_images(images)
    return given


CLASSIFICATION = TaskEvaluation(
    kind="classification",
    primary="top-1 accuracy",
    needs=("classifies",),
    run=run,
    answer=answer,
    metrics=("top5",),
)
