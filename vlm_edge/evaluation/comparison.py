"""Two engines' outcomes on the same samples -> every metric, what it lost, and with what certainty."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vlm_edge.core.measurement import Measurement
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.fidelity import embedding_fidelity, modality_gap, token_fidelity
from vlm_edge.evaluation.outcomes import Outcomes
from vlm_edge.evaluation.paired_metrics import MeanMetric, RowIndex, SummaryMetric, measurement, score_metric
from vlm_edge.evaluation.tasks import TASKS
from vlm_edge.statistics.intervals import Interval, mcnemar_exact


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
