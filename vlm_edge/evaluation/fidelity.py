"""How close a dual encoder's embeddings stay to the baseline's, whether or not its answers are right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm_edge.core.measurement import Measurement
from vlm_edge.evaluation.embeddings import Embeddings, Matrix
from vlm_edge.evaluation.resample import bootstrap_interval

Floats = NDArray[np.float64]


def embedding_fidelity(
    baseline: Embeddings, candidate: Embeddings, groups: ArrayLike, *, same: bool, seed: int
) -> list[Measurement]:
    """Fidelity of embeddings of the same samples, one pair of an image and its texts each.

    ``embedding_cosine``: the mean over samples of the cosine between candidate and baseline, the mean of the image's
    and the text's; ``embedding_cosine[image]`` and ``[text]`` are the two on their own. ``modality_gap``: the length of
    (mean image embedding - mean text embedding), over samples (Liang et al. 2022, arXiv:2203.02053, section 2), and
    ``modality_gap_change`` the candidate's less the baseline's. An embedding that is not finite counts as 0.

    Intervals come from a bootstrap over ``groups`` (samples,). The gap's is that of its linearisation
    mean(u . (image - text)), u being the gap's direction, which has the same value and first-order variance.

    Args:
        same: both are of one engine, which is as close to itself as can be.
    """
    found = []
    if (baseline.image.columns, baseline.text_rows) == (candidate.image.columns, candidate.text_rows):
        image = _cosines(baseline.image, candidate.image)[list(candidate.image_rows)]
        text = _means(_cosines(baseline.text, candidate.text)[:, None], candidate.text_rows)[:, 0]
        for part, cosines in (("", (image + text) / 2), ("[image]", image), ("[text]", text)):
            found.append(_mean(f"embedding_cosine{part}", np.ones_like(image) if same else cosines, groups, seed))
    found.append(modality_gap(candidate, groups, seed))
    change = _along_the_gap(candidate) - _along_the_gap(baseline)
    found.append(_mean("modality_gap_change", change, groups, seed))
    return found


def modality_gap(embeddings: Embeddings, groups: ArrayLike, seed: int) -> Measurement:
    """How far apart images and texts lie in the space that they share."""
    return _mean("modality_gap", _along_the_gap(embeddings), groups, seed)


def _cosines(baseline: Matrix, candidate: Matrix) -> Floats:
    """Row by row: (rows,)."""
    before, after = _finite(baseline), _finite(candidate)
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return np.asarray((before * after).sum(axis=1) / np.where(lengths > 0, lengths, 1.0))


def _along_the_gap(embeddings: Embeddings) -> Floats:
    """Each sample's (image - mean of its texts), projected on the mean of that over all samples: (samples,)."""
    image = _finite(embeddings.image)[list(embeddings.image_rows)]
    apart = image - _means(_finite(embeddings.text), embeddings.text_rows)
    gap = apart.mean(axis=0)
    length = float(np.linalg.norm(gap))
    return np.asarray(apart @ (gap / length if length > 0 else gap))


def _finite(matrix: Matrix) -> Floats:
    """(rows, columns), with zeros for a row that holds a value that is not finite."""
    values = matrix.array().astype(np.float64)
    return np.where(np.isfinite(values).all(axis=1, keepdims=True), values, 0.0)


def _means(values: Floats, rows: Sequence[Sequence[int]]) -> Floats:
    """The mean of several rows of ``values`` (n, columns) for each sample: (samples, columns)."""
    counts = np.array([len(own) for own in rows])
    flat = np.array([row for own in rows for row in own])
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return np.asarray(np.add.reduceat(values[flat], starts, axis=0) / counts[:, None])


def _mean(metric: str, values: Floats, groups: ArrayLike, seed: int) -> Measurement:
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.stack([np.bincount(index).astype(np.float64), np.bincount(index, weights=values)], axis=1)
    interval = bootstrap_interval(lambda each: each[..., 1] / each[..., 0], sums, seed=seed)
    return Measurement(
        metric=metric, low=interval.low, value=float(values.mean()), high=interval.high, n=len(values), unit="1"
    )
