"""Captioning: CIDEr against the captions that people wrote."""

from __future__ import annotations

from pathlib import Path

from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset
from vlm_edge.evaluation.cider import cider_scores
from vlm_edge.evaluation.tasks.base import Query, Rows, TaskEvaluation, decoded_images, readable_samples
from vlm_edge.runtime.capabilities import Captions


def run(pipeline: Captions, dataset: Dataset, progress: Progress) -> Rows:
    """Caption every image, begun as the data set's prompt says.

    Document frequencies are those of all references of ``dataset``, also where the image cannot be read. The score is
    given as ``accuracy`` and under its own name.
    """
    prompt = dataset.prompts[0] if dataset.prompts else ""
    unreadable: dict[Path, str] = {}
    tokens: dict[Path, list[int]] = {}
    for images in decoded_images(pipeline.manifest.image, dataset, progress, unreadable):
        tokens.update(zip(images, pipeline.caption_ids(list(images.values()), prompt), strict=True))
    captions = {path: pipeline.decode(ids) for path, ids in tokens.items()}
    scores = cider_scores(
        [captions.get(sample.image, "") for sample in dataset.samples], [sample.answers for sample in dataset.samples]
    )
    by_id = {sample.id: score for sample, score in zip(dataset.samples, scores, strict=True)}
    samples = readable_samples(dataset, unreadable)
    column = [by_id[sample.id] for sample in samples]
    return Rows(
        samples=samples,
        scores={"accuracy": column, "cider": column},
        predictions=[captions[sample.image] for sample in samples],
        unreadable=unreadable,
        tokens=[tokens[sample.image] for sample in samples],
    )


def answer(pipeline: Captions, query: Query) -> str:
    """One caption, end to end, begun as the data set's prompt says."""
    return pipeline.caption(query.image, *query.prompts[:1])


CAPTIONING = TaskEvaluation(
    kind="captioning",
    primary="CIDEr",
    needs=("captions",),
    run=run,
    answer=answer,
    metrics=("cider",),
    units={"accuracy": "CIDEr", "cider": "CIDEr"},
)
