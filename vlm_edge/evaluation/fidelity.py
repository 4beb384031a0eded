"""Fidelity to the baseline's tokens and embeddings, whether or not the answers are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm_edge.core.measurement import Measurement
from vlm_edge.evaluation.embeddings import Embeddings, Matrix
from vlm_edge.statistics.intervals import (
    CONFIDENCE,
    Interval,
    group_sums,
    mean_score_interval,
    middle,
    normal_quantile,
    resample_groups,
)

Tokens = Sequence[Sequence[int]]


def token_agreement(candidate: Sequence[int], baseline: Sequence[int]) -> float:
    """The share of positions with the same token, over the longer of the two; 1 if both are empty.

    Positions, not a matching: after an inserted token nothing agrees any more, as greedy decoding itself goes astray
    from the first token that differs.
    """
    longer = max(len(candidate), len(baseline))
    if not longer:
        return 1.0
    return sum(ours == theirs for ours, theirs in zip(candidate, baseline, strict=False)) / longer


def exact_match(candidate: Sequence[int], baseline: Sequence[int]) -> float:
    """1 if every token is the same and neither has more, else 0."""
    return float(list(candidate) == list(baseline))


def token_fidelity(
    baseline: Tokens, candidate: Tokens, groups: ArrayLike, *, same: bool, seed: int
) -> list[Measurement]:
    """``token_agreement`` and ``exact_match`` of two engines' tokens for the same samples: the means over samples.

    Args:
        baseline: each sample's token ids, without the end token.
        candidate: the other engine's.
        groups: (samples,): what a sample shares its luck with; resampled together.
        same: both are of one engine, which is as close to itself as can be.
        seed: of the bootstrap.
    """
    return [
        _mean_of(metric, of, baseline, candidate, groups, same, seed)
        for metric, of in (("token_agreement", token_agreement), ("exact_match", exact_match))
    ]


def _mean_of(
    metric: str,
    of: Callable[[Sequence[int], Sequence[int]], float],
    baseline: Tokens,
    candidate: Tokens,
    groups: ArrayLike,
    same: bool,
    seed: int,
) -> Measurement:
    scores = [of(ours, theirs) for ours, theirs in zip(candidate, baseline, strict=True)]
    interval = Interval(1.0, 1.0) if same else mean_score_interval(scores, groups, seed=seed)
    value = sum(scores) / len(scores)
    return Measurement(metric=metric, low=interval.low, value=value, high=interval.high, n=len(scores), unit="share")


Floats = NDArray[np.float64]
COSINE = "embedding_cosine"
RESAMPLES = 2_000
"""Of values that are all different, which take a draw for each group."""


def embedding_fidelity(
    baseline: Embeddings, candidate: Embeddings, groups: ArrayLike, *, same: bool, seed: int
) -> list[Measurement]:
    """Fidelity of embeddings of the same samples, one pair of an image and its texts each.

    ``embedding_cosine``: the mean over samples of the cosine between candidate and baseline, the mean of the image's
    and the text's; ``embedding_cosine[image]`` and ``[text]`` are the two on their own. ``modality_gap``: the length of
    (mean image embedding - mean text embedding), over samples (Liang et al. 2022, arXiv:2203.02053, section 2), and
    ``modality_gap_change`` the candidate's less the baseline's. An embedding that is not finite counts as 0.

    Intervals come from a bootstrap over ``groups`` (samples,). That of a cosine is widened to hold what z^2 further
    samples as bad as the worst would make of it: a few samples may lack the bad ones by chance. The gap's is that of
    its linearisation mean(u . (image - text)), u being the gap's direction, which has the same value and first-order
    variance.

    Args:
        same: both are of one engine, which is as close to itself as can be.
    """
    columns: dict[str, Floats] = {}
    if (baseline.image.columns, baseline.text_rows) == (candidate.image.columns, candidate.text_rows):
        image = _cosines(baseline.image, candidate.image)[list(candidate.image_rows)]
        text = _means(_cosines(baseline.text, candidate.text)[:, None], candidate.text_rows)[:, 0]
        parts = {"": (image + text) / 2, "[image]": image, "[text]": text}
        columns = {f"{COSINE}{part}": np.ones_like(image) if same else cosines for part, cosines in parts.items()}
    columns["modality_gap"] = _along_the_gap(candidate)
    columns["modality_gap_change"] = columns["modality_gap"] - _along_the_gap(baseline)
    return _measured(columns, groups, seed)


def modality_gap(embeddings: Embeddings, groups: ArrayLike, seed: int) -> Measurement:
    """Distance between the means of the image and of the text embeddings."""
    return _measured({"modality_gap": _along_the_gap(embeddings)}, groups, seed)[0]


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


def _measured(columns: dict[str, Floats], groups: ArrayLike, seed: int) -> list[Measurement]:
    """The mean of each column; all from the same draws, which is most of the work."""
    totals = resample_groups(group_sums(groups, *columns.values()), seed, RESAMPLES)
    further = normal_quantile(CONFIDENCE) ** 2
    found = []
    for index, (metric, values) in enumerate(columns.items(), start=1):
        low, high = middle(totals[:, index] / totals[:, 0], CONFIDENCE)
        if metric.startswith(COSINE):
            low = min(low, float((values.sum() + further * values.min()) / (len(values) + further)))
        mean = float(values.mean())
        found.append(Measurement(metric=metric, low=low, value=mean, high=high, n=len(values), unit="1"))
    return found
