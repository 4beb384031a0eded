"""Two engines' outcomes on the same samples -> every metric, what it lost, with what certainty; and fidelity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm_edge.core.measurement import Measurement
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.outcomes import Embeddings, Matrix, Outcomes
from vlm_edge.evaluation.paired_metrics import MeanMetric, RowIndex, SummaryMetric, measurement, score_metric
from vlm_edge.evaluation.tasks import TASKS
from vlm_edge.statistics.intervals import (
    CONFIDENCE,
    Interval,
    group_sums,
    mcnemar_exact,
    mean_score_interval,
    middle,
    normal_quantile,
    resample_groups,
)


def describe(outcomes: Outcomes, seed: int = 0) -> list[Measurement]:
    """Every metric M of the task, ``accuracy`` first, then every slice of it as ``M[SLICE]``; the modality gap.

    Raises:
        VlmEdgeError: there are no outcomes.
    """
    _check_some(outcomes)
    found = [each for metric in _metrics(outcomes, outcomes, seed) for each in metric.own()]
    if outcomes.embeddings is not None:
        found.append(modality_gap(outcomes.embeddings, outcomes.groups, seed))
    return found


def compare(baseline: Outcomes, candidate: Outcomes, seed: int = 0) -> list[Measurement]:
    """Measurements of the candidate, paired with the baseline sample by sample.

    For every metric M of the task, ``accuracy`` first: ``M``, ``M_drop_pt`` (baseline less candidate, in hundredths)
    and ``M_ratio`` (candidate over baseline; left out when the baseline has 0), then the same of every slice, as
    ``M[SLICE]``. ``mcnemar_p`` is given when every score is 0 or 1, fidelity when both have embeddings or tokens. An
    engine against itself (the same digest) has lost exactly nothing; two engines that happen to give the same answers
    have an interval around 0.

    Raises:
        VlmEdgeError: the outcomes are of other data, another task or other samples, or there are none.
    """
    _check_pairs(baseline, candidate)
    found = [each for metric in _metrics(baseline, candidate, seed) for each in (*metric.own(), *metric.changes())]
    found += _mcnemar(baseline, candidate)
    same = baseline.engine == candidate.engine
    if baseline.tokens is not None and candidate.tokens is not None:
        found += token_fidelity(baseline.tokens, candidate.tokens, candidate.groups, same=same, seed=seed)
    if baseline.embeddings is not None and candidate.embeddings is not None:
        found += embedding_fidelity(baseline.embeddings, candidate.embeddings, candidate.groups, same=same, seed=seed)
    return found


def _metrics(baseline: Outcomes, candidate: Outcomes, seed: int) -> Iterator[MeanMetric | SummaryMetric]:
    """Every metric of the whole, then of every slice by name."""
    task, same = TASKS[candidate.task], baseline.engine == candidate.engine
    groups = np.unique(np.asarray(candidate.groups), return_inverse=True)[1]
    scores = {
        metric: (np.asarray(baseline.scores[metric]), np.asarray(column)) for metric, column in candidate.scores.items()
    }
    sums = [(each, each.columns(baseline), each.columns(candidate)) for each in task.summaries]
    for part, rows in _parts(candidate):
        inside = np.unique(groups[rows], return_inverse=True)[1]
        for metric, (before, after) in scores.items():
            name = f"{metric}{part}"
            if metric in task.units:
                yield score_metric(name, before[rows], after[rows], inside, same, seed, task.units[metric])
            else:
                yield MeanMetric(name, before[rows], after[rows], inside, same, seed)
        for each, before, after in sums:
            name = f"{each.metric}{part}"
            yield SummaryMetric(name, each.statistic, before[rows], after[rows], each.kinds, inside, same, seed)


def _parts(outcomes: Outcomes) -> Iterator[tuple[str, RowIndex]]:
    """The suffix and the rows of the whole, and of every slice by name."""
    yield "", np.arange(len(outcomes.ids))
    members: dict[str, list[int]] = {}
    for row, slices in enumerate(outcomes.slices):
        for name in slices:
            members.setdefault(name, []).append(row)
    for name in sorted(members):
        yield f"[{name}]", np.asarray(members[name])


def _mcnemar(baseline: Outcomes, candidate: Outcomes) -> list[Measurement]:
    """The exact test of "a loss is as likely as a gain", for scores of 0 and 1; n counts the groups.

    Samples of one group are no independent evidence, so a group counts once: as lost when it lost more samples than it
    gained, as gained when it gained more, not at all when as many. With one sample a group this is McNemar's test;
    otherwise the sign test over groups, which is exact when swapping the two engines' answers within a group changes
    nothing.
    """
    before, after = (np.asarray(each.scores["accuracy"]) for each in (baseline, candidate))
    if not np.isin([before, after], (0.0, 1.0)).all():
        return []
    groups = np.unique(np.asarray(candidate.groups), return_inverse=True)[1]
    change = np.bincount(groups, weights=before - after)
    p_value = mcnemar_exact(int((change > 0).sum()), int((change < 0).sum()))
    return [measurement("mcnemar_p", Interval(p_value, p_value), p_value, len(change), "p")]


def _check_some(outcomes: Outcomes) -> None:
    if not outcomes.ids:
        raise VlmEdgeError("no sample was evaluated, so there is nothing to compare", "check the data set's test split")


def _check_pairs(baseline: Outcomes, candidate: Outcomes) -> None:
    _check_some(candidate)
    if (baseline.task, baseline.data) != (candidate.task, candidate.data):
        raise VlmEdgeError(
            "the baseline and the candidate were evaluated on different data or as different tasks: "
            f"{baseline.task} on {baseline.data[:12]}, {candidate.task} on {candidate.data[:12]}",
            "evaluate both on the same split with the same limit",
        )
    if list(baseline.scores) != list(candidate.scores):
        raise VlmEdgeError(
            f"the baseline has the metrics {', '.join(baseline.scores)}, the candidate {', '.join(candidate.scores)}",
            "evaluate both again with this version",
        )
    if baseline.ids != candidate.ids:
        odd = sorted(set(baseline.ids) ^ set(candidate.ids))
        shown = ", ".join(odd[:5]) if odd else "none, but their order differs"
        raise VlmEdgeError(
            f"the baseline has {len(baseline.ids)} samples, the candidate {len(candidate.ids)}; only in one: {shown}",
            "evaluate both again on the same split",
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

    ``baseline`` and ``candidate``: each sample's token ids, without the end token. ``groups`` (samples,) and ``same``
    as in :func:`embedding_fidelity`.
    """
    found = []
    for metric, of in (("token_agreement", token_agreement), ("exact_match", exact_match)):
        scores = [of(ours, theirs) for ours, theirs in zip(candidate, baseline, strict=True)]
        interval = Interval(1.0, 1.0) if same else mean_score_interval(scores, groups, seed=seed)
        found.append(measurement(metric, interval, sum(scores) / len(scores), len(scores), "share"))
    return found


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
        low, high = middle(totals[:, index] / totals[:, 0])
        if metric.startswith(COSINE):
            low = min(low, float((values.sum() + further * values.min()) / (len(values) + further)))
        found.append(measurement(metric, Interval(low, high), float(values.mean()), len(values), "1"))
    return found
