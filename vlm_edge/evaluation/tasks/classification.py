"""Zero-shot classification by a dual encoder: is the right class the first, or among the first five?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset
from vlm_edge.engines.base import Array
from vlm_edge.evaluation.embeddings import Embeddings, Matrix
from vlm_edge.evaluation.tasks.base import Rows, TaskEvaluation, decoded_images, readable_samples
from vlm_edge.runtime import DualEncoderPipeline

TOP = 5


def embed_every_image(
    pipeline: DualEncoderPipeline, dataset: Dataset, progress: Progress
) -> tuple[Array, dict[Path, int], dict[Path, str]]:
    """Embeddings (images, dim), each image's row, and why the others could not be read."""
    unreadable: dict[Path, str] = {}
    parts: list[Array] = []
    paths: list[Path] = []
    for images in decoded_images(dataset, progress, unreadable):
        parts.append(pipeline.embed_images(list(images.values())))
        paths += images
    return np.concatenate(parts), {path: row for row, path in enumerate(paths)}, unreadable


def run(pipeline: DualEncoderPipeline, dataset: Dataset, progress: Progress) -> Rows:
    """Rank the classes for every image by the cosine of the two embeddings; of equal classes, the earlier goes first.

    A class's embedding is the mean over its prompts. ``top5`` is given when there are more than five classes. Where a
    broken engine gives no finite numbers, no class is right.
    """
    classes = pipeline.label_embeddings(dataset.labels, dataset.prompts)
    embedded, row_of, unreadable = embed_every_image(pipeline, dataset, progress)
    samples = readable_samples(dataset, unreadable)
    rows = [row_of[sample.image] for sample in samples]
    position = {label: index for index, label in enumerate(dataset.labels)}
    right = np.array([position[sample.answers[0]] for sample in samples])
    similar = (embedded @ classes.T)[rows]
    ranking = np.argsort(-similar, axis=1, kind="stable")
    places = (ranking == right[:, None]).argmax(axis=1)
    places[~np.isfinite(similar).all(axis=1)] = len(dataset.labels)
    scores = {"accuracy": (places == 0).astype(float).tolist()}
    if len(dataset.labels) > TOP:
        scores[f"top{TOP}"] = (places < TOP).astype(float).tolist()
    return Rows(
        samples=samples,
        scores=scores,
        predictions=[dataset.labels[first] for first in ranking[:, 0]],
        unreadable=unreadable,
        embeddings=Embeddings(
            image=Matrix.of(embedded),
            text=Matrix.of(classes),
            image_rows=tuple(rows),
            text_rows=tuple((index,) for index in right.tolist()),
        ),
    )


CLASSIFICATION = TaskEvaluation(
    kind="classification", primary="top-1 accuracy", pipelines=(DualEncoderPipeline,), run=run
)
