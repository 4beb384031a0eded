"""Two engines' outcomes on the same samples -> every metric, what it lost, and with what certainty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.measurement import Measurement
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.outcomes import Outcomes
from vlm_edge.evaluation.tasks import TASKS
from vlm_edge.numerics.statistics import Interval, mcnemar_exact, mean_score_interval, paired_change

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def compare(baseline: Outcomes, candidate: Outcomes, seed: int = 0) -> list[Measurement]:
    """Measurements of the candidate, paired with the baseline sample by sample.

    For every metric M of the task, ``accuracy`` first: ``M``, ``M_drop_pt`` (baseline less candidate, in hundredths)
    and ``M_ratio`` (candidate over baseline; left out when the baseline has 0), then the same of every slice, as
    ``M[SLICE]``. ``mcnemar_p`` is given when every score is 0 or 1. An engine against itself (the same digest) has lost
    exactly nothing; two engines that happen to give the same answers have an interval around 0.

    Raises:
        VlmEdgeError: the outcomes are of other data, another task or other samples, or there are none.
    """
    _check_pairs(baseline, candidate)
    groups = np.unique(np.asarray(candidate.groups), return_inverse=True)[1]
    same = baseline.engine == candidate.engine
    largest = TASKS[candidate.task].largest
    pairs = {
        metric: (np.asarray(baseline.scores[metric]), np.asarray(column)) for metric, column in candidate.scores.items()
    }
    found: list[Measurement] = []
    for part, rows in _parts(candidate):
        for metric, (before, after) in pairs.items():
            top = largest.get(metric, 1.0)
            found += _mean_score(f"{metric}{part}", before[rows], after[rows], groups[rows], same, top, seed)
    return [*found, *_mcnemar(*pairs["accuracy"], groups)]


def suffixed(metric: str, suffix: str) -> str:
    """``accuracy[color]`` and ``_drop_pt`` give ``accuracy_drop_pt[color]``."""
    name, bracket, part = metric.partition("[")
    return f"{name}{suffix}{bracket}{part}"


def _check_pairs(baseline: Outcomes, candidate: Outcomes) -> None:
    if not candidate.ids:
        raise VlmEdgeError("no sample was evaluated, so there is nothing to compare", "check the data set's test split")
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


def _parts(outcomes: Outcomes) -> Iterator[tuple[str, Rows]]:
    """The suffix and the rows of the whole, and of every slice by name."""
    yield "", np.arange(len(outcomes.ids))
    members: dict[str, list[int]] = {}
    for row, slices in enumerate(outcomes.slices):
        for name in slices:
            members.setdefault(name, []).append(row)
    for name in sorted(members):
        yield f"[{name}]", np.asarray(members[name])


def _mean_score(
    metric: str, before: Floats, after: Floats, groups: Rows, same: bool, top: float, seed: int
) -> list[Measurement]:
    """A mean of scores in 0..``top``, its drop and its ratio. The intervals are those of scores in 0..1."""
    n, old, new = len(after), float(before.mean()), float(after.mean())
    interval = mean_score_interval(after / top, groups, seed=seed)
    unit = "share" if top == 1 else "score"
    found = [_measurement(metric, Interval(top * interval.low, top * interval.high), new, n, unit)]
    if same:
        drop, ratio = Interval(0.0, 0.0), Interval(1.0, 1.0)
    else:
        change = paired_change(before / top, after / top, groups, seed=seed)
        drop = Interval(100 * top * change.drop.low, 100 * top * change.drop.high)
        ratio = change.ratio or Interval(0.0, np.inf)
    found.append(_measurement(suffixed(metric, "_drop_pt"), drop, 100 * float((before - after).mean()), n, "pt"))
    if old > 0 and np.isfinite(ratio.high):
        found.append(_measurement(suffixed(metric, "_ratio"), ratio, new / old, n, "ratio"))
    return found


def _mcnemar(before: Floats, after: Floats, groups: Rows) -> list[Measurement]:
    """The exact test of "a loss is as likely as a gain", for scores of 0 and 1; n counts the groups.

    Samples of one group are no independent evidence, so a group counts once: as lost when it lost more samples than it
    gained, as gained when it gained more, not at all when as many. With one sample a group this is McNemar's test;
    otherwise the sign test over groups, which is exact when swapping the two engines' answers within a group changes
    nothing.
    """
    if not (_is_binary(before) and _is_binary(after)):
        return []
    change = np.bincount(groups, weights=before - after)
    p_value = mcnemar_exact(int((change > 0).sum()), int((change < 0).sum()))
    return [_measurement("mcnemar_p", Interval(p_value, p_value), p_value, len(change), "p")]


def _measurement(metric: str, interval: Interval, value: float, n: int, unit: str) -> Measurement:
    return Measurement(metric=metric, low=interval.low, value=value, high=interval.high, n=n, unit=unit)


def _is_binary(scores: Sequence[float] | Floats) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())
