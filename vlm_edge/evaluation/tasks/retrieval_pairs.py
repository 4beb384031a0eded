"""Retrieval by a model that scores pairs of an image and a text.

As BLIP is evaluated (Li et al. 2022, arXiv:2201.12086, section 4.1; train_retrieval.py of its code): embeddings choose
:data:`CANDIDATES` for each query, and those are ranked anew by the fusion's logit for "match" plus the cosine. Whatever
was not chosen comes after them. Without embeddings (BridgeTower) every pair is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array
from vlm_edge.core.stage import Progress
from vlm_edge.runtime.capabilities import Scores

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
    """(images, texts): the score of each pair, the lowest of all where it was not judged.

    Args:
        pipeline: judges the pairs, an image at a time, so that one image's features are in memory.
        images: files that can be read.
        texts: what each image is judged with.
        cosines: (images, texts) of the embeddings, where the model has them.
        progress: is told of every image.
        candidates: texts to judge for an image and images for a text; the rest are left to the embeddings.
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
    """(images, texts): whether a text is among an image's nearest ``candidates``, or an image among a text's."""
    if cosines is None:
        return np.ones((images, texts), bool)
    chosen = np.zeros((images, texts), bool)
    near_texts = np.argsort(-cosines, axis=1, kind="stable")[:, :candidates]
    np.put_along_axis(chosen, near_texts, True, axis=1)
    near_images = np.argsort(-cosines, axis=0, kind="stable")[:candidates]
    np.put_along_axis(chosen, near_images, True, axis=0)
    return chosen
