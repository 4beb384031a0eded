"""Retrieval in both directions: is something right among the first k? By embeddings, or by scores of pairs.

The protocol of Karpathy and Fei-Fei (CVPR 2015, arXiv:1412.2306, section 4.1): every image ranks all captions of the
split, every caption all images. An image has found when any of its captions is among the first k; a caption, when its
image is. Two additions for what the protocol leaves open: a caption that several images have is right for all of them,
and the best right one ranks after every wrong one of the same similarity, so that an encoder that makes everything
alike finds nothing.

A model that scores pairs does so as BLIP is evaluated (Li et al. 2022, arXiv:2201.12086, section 4.1;
train_retrieval.py of its code): embeddings choose :data:`CANDIDATES` for each query, and those are ranked by the
fusion's logit for "match" plus the cosine, before all others. Without embeddings (BridgeTower) every pair is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array
from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.outcomes import Embeddings, Matrix
from vlm_edge.evaluation.tasks.base import Query, Rows, TaskEvaluation, every_image
from vlm_edge.runtime.capabilities import Pipeline, Scores, embeds, scores

CANDIDATES = 128
"""As many as BLIP's authors judge on Flickr30K (k_test in configs/retrieval_flickr.yaml)."""


def pair_scores(
    pipeline: Scores,
    images: Sequence[Path],
    texts: Sequence[str],
    cosines: Array | None,
    progress: Progress,
    candidates: int = CANDIDATES,
) -> NDArray[np.float32]:
    """(images, texts): the score of each pair; the lowest float32 where it was not scored.

    Args:
        pipeline: scores the pairs, an image at a time, so that one image's features are in memory.
        images: files that can be read.
        texts: scored with each image.
        cosines: (images, texts) of the embeddings, where the model has them.
        progress: advances by one for every image.
        candidates: texts to score for an image and images for a text; embeddings order the rest.
    """
    chosen = chosen_pairs(cosines, len(images), len(texts), candidates)
    scores = np.full((len(images), len(texts)), np.finfo(np.float32).min, np.float32)
    with progress.bar("pairs", len(images)) as ticker:
        for row, image in enumerate(images):
            (columns,) = np.nonzero(chosen[row])
            asked = [texts[column] for column in columns.tolist()]
            logits = pipeline.match_logits(pipeline.encode_images([image]), asked, cut=True)
            scores[row, columns] = logits if cosines is None else logits + cosines[row, columns]
            ticker.advance()
    return scores


def chosen_pairs(cosines: Array | None, images: int, texts: int, candidates: int) -> NDArray[np.bool_]:
    """(images, texts): True where a text is among an image's nearest ``candidates``, or an image among a text's."""
    if cosines is None:
        return np.ones((images, texts), bool)
    chosen = np.zeros((images, texts), bool)
    near_texts = np.argsort(-cosines, axis=1, kind="stable")[:, :candidates]
    np.put_along_axis(chosen, near_texts, True, axis=1)
    near_images = np.argsort(-cosines, axis=0, kind="stable")[:candidates]
    np.put_along_axis(chosen, near_images, True, axis=0)
    return chosen


CUTOFFS = (1, 5, 10)
QUERIES_AT_ONCE = 512


def run(pipeline: Pipeline, dataset: Dataset, progress: Progress) -> Rows:
    """Rank all captions for every image and all images for every caption.

    A sample is an image with its captions. Its score from text to image is the share of its captions that find it, so
    with as many captions to every image the mean is the recall over captions. ``accuracy`` is the mean of R@1 in both
    directions. Images that share a caption share its luck, and are one group. An image's prediction is the caption
    that it ranks first.

    Raises:
        VlmEdgeError: there are fewer than two images or two captions.
    """
    embedded, samples, rows, unreadable = every_image(
        pipeline.embed_images if embeds(pipeline) else _none, pipeline.manifest.image, dataset, progress
    )
    captions = list(dict.fromkeys(caption for sample in samples for caption in sample.answers))
    if len(samples) < 2 or len(captions) < 2:
        raise VlmEdgeError(
            f"{dataset.name}: {len(samples)} images and {len(captions)} captions leave nothing to rank",
            "give at least two images with different captions",
        )
    images = embedded[rows]
    texts = pipeline.embed_texts(captions, cut=True) if embeds(pipeline) else _none(captions)
    position = {caption: row for row, caption in enumerate(captions)}
    owned = [[position[caption] for caption in sample.answers] for sample in samples]
    owners: list[list[int]] = [[] for _ in captions]
    for row, own in enumerate(owned):
        for caption in own:
            owners[caption].append(row)
    if scores(pipeline):
        cosines = images @ texts.T if embeds(pipeline) else None
        pairs = pair_scores(pipeline, [sample.image for sample in samples], captions, cosines, progress)
        image_ranks, first = placed(pairs, owned)
        text_ranks, _ = placed(pairs.T, owners)
    else:
        image_ranks, first = ranks(images, texts, owned)
        text_ranks, _ = ranks(texts, images, owners)
    columns: dict[str, Sequence[float]] = {"accuracy": []}
    for cutoff in CUTOFFS:
        columns[f"recall_at_{cutoff}[image-to-text]"] = (image_ranks < cutoff).astype(float).tolist()
        found = (text_ranks < cutoff).astype(float)
        columns[f"recall_at_{cutoff}[text-to-image]"] = [float(found[own].mean()) for own in owned]
    both = zip(columns["recall_at_1[image-to-text]"], columns["recall_at_1[text-to-image]"], strict=True)
    columns["accuracy"] = [(image + text) / 2 for image, text in both]
    return Rows(
        samples=samples,
        scores=columns,
        predictions=[captions[row] for row in first],
        unreadable=unreadable,
        groups=sharing_captions(samples),
        notes=cut_captions(pipeline, captions),
        embeddings=Embeddings(
            image=Matrix.of(images),
            text=Matrix.of(texts),
            image_rows=tuple(range(len(samples))),
            text_rows=tuple(map(tuple, owned)),
        )
        if embeds(pipeline)
        else None,
    )


def answer(pipeline: Pipeline, query: Query) -> Array:
    """One image with one text, end to end: the logit of "match" (1,), or their cosine (1, 1)."""
    if scores(pipeline):
        return pipeline.match_logits(pipeline.encode_images([query.image]), [query.text], cut=True)
    assert embeds(pipeline)
    return pipeline.embed_images([query.image]) @ pipeline.embed_texts([query.text], cut=True).T


def cut_captions(pipeline: Pipeline, captions: Sequence[str]) -> tuple[str, ...]:
    """A sentence on the captions that the model does not read to their end, where there are such."""
    assert pipeline.tokenizer is not None
    count = pipeline.tokenizer.count_too_long(captions)
    if not count:
        return ()
    longest = f"{pipeline.tokenizer.longest} tokens that the model reads"
    return (f"{count:,} of {len(captions):,} captions have more than the {longest}; their ends were left out",)


def _none(inputs: Sequence[object]) -> Array:
    """(inputs, 0): the embeddings of a model that has none."""
    return np.zeros((len(inputs), 0), np.float32)


def ranks(
    queries: Array, gallery: Array, right: Sequence[Sequence[int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of queries (q, dim) in a gallery (g, dim), both of length 1: (q,) and (q,).

    The first is the rank (0 is the best) of the best of each query's ``right`` rows: how many wrong rows are at least
    as similar (or no number, as a broken engine gives). The second is the row that is the most similar, of equal ones
    the earliest.
    """
    parts = [
        placed(queries[start : start + QUERIES_AT_ONCE] @ gallery.T, right[start : start + QUERIES_AT_ONCE])
        for start in range(0, len(queries), QUERIES_AT_ONCE)
    ]
    rank, first = (np.concatenate(each) for each in zip(*parts, strict=True))
    return rank, first


def placed(scores: Array, right: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As :func:`ranks`, from the scores (q, g) of every query with every row of the gallery."""
    rank = np.empty(len(scores), np.int64)
    for row, own in enumerate(right):
        ahead = ~(scores[row] < scores[row, own].max())  # what is not finite goes ahead of what is right
        rank[row] = np.count_nonzero(ahead) - np.count_nonzero(ahead[own])
    return rank, scores.argmax(axis=1)


def sharing_captions(samples: Sequence[Sample]) -> list[str]:
    """Each sample's group: the id of the first sample that it is joined to by captions in common, or its own."""
    parent = list(range(len(samples)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first_with: dict[str, int] = {}
    for row, sample in enumerate(samples):
        for caption in sample.answers:
            earlier, own = root(first_with.setdefault(caption, row)), root(row)
            parent[max(earlier, own)] = min(earlier, own)
    return [samples[root(row)].id for row in range(len(samples))]


RETRIEVAL = TaskEvaluation(
    kind="retrieval",
    primary="mean R@1 of both directions",
    needs=("scores", "embeds"),
    run=run,
    answer=answer,
    metrics=("recall_at_1", "recall_at_5", "recall_at_10"),
)
