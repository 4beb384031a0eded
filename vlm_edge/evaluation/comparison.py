"""Two engines' outcomes on the same samples -> accuracy, what it lost, and with what certainty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.measurement import Measurement
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.outcomes import Outcomes
from vlm_edge.numerics.statistics import Interval, mcnemar_exact, mean_score_interval, paired_change


def compare(baseline: Outcomes, candidate: Outcomes, seed: int = 0) -> list[Measurement]:
    """Measurements of the candidate, paired with the baseline sample by sample.

    ``accuracy`` and, for each slice, ``accuracy[SLICE]`` are shares; ``accuracy_drop_pt`` is in points (hundredths);
    ``accuracy_ratio`` is left out when the baseline is never right. ``mcnemar_p`` is given when every image has one
    sample, and every score is 0 or 1: the test takes the samples as independent. An engine against itself has lost
    exactly nothing; two engines that happen to give the same answers have an interval around 0.

    Raises:
        VlmEdgeError: the outcomes are of other data, another metric or other samples, or there are none.
    """
    _check_pairs(baseline, candidate)
    before, after = np.asarray(baseline.scores), np.asarray(candidate.scores)
    groups = np.unique(np.asarray(candidate.groups), return_inverse=True)[1]
    n = len(after)
    measurements = [_accuracy("accuracy", after, groups, seed)]
    change, mean = paired_change(before, after, groups, seed=seed), float(before.mean())
    same = baseline.engine == candidate.engine
    drop = Interval(0.0, 0.0) if same else Interval(100 * change.drop.low, 100 * change.drop.high)
    ratio = Interval(1.0, 1.0) if same else change.ratio
    measurements.append(_measurement("accuracy_drop_pt", drop, 100 * float((before - after).mean()), n, "pt"))
    if ratio is not None and mean > 0:
        measurements.append(_measurement("accuracy_ratio", ratio, float(after.mean()) / mean, n, "ratio"))
    measurements += [
        _accuracy(f"accuracy[{name}]", after[rows], groups[rows], seed) for name, rows in _slices(candidate)
    ]
    if len(set(candidate.groups)) == n and _is_binary(before) and _is_binary(after):
        p_value = mcnemar_exact(int((before > after).sum()), int((before < after).sum()))
        measurements.append(_measurement("mcnemar_p", Interval(p_value, p_value), p_value, n, "p"))
    return measurements


def _check_pairs(baseline: Outcomes, candidate: Outcomes) -> None:
    if not candidate.ids:
        raise VlmEdgeError("no sample was evaluated, so there is nothing to compare", "check the data set's test split")
    if (baseline.metric, baseline.data) != (candidate.metric, candidate.data):
        raise VlmEdgeError(
            "the baseline and the candidate were evaluated on different data or with different metrics: "
            f"{baseline.metric} on {baseline.data[:12]}, {candidate.metric} on {candidate.data[:12]}",
            "evaluate both on the same split with the same limit",
        )
    if baseline.ids != candidate.ids:
        odd = sorted(set(baseline.ids) ^ set(candidate.ids))
        shown = ", ".join(odd[:5]) if odd else "none, but their order differs"
        raise VlmEdgeError(
            f"the baseline has {len(baseline.ids)} samples, the candidate {len(candidate.ids)}; only in one: {shown}",
            "evaluate both again on the same split",
        )


def _slices(outcomes: Outcomes) -> list[tuple[str, NDArray[np.int64]]]:
    """(name, rows) of every slice, sorted by name."""
    names = sorted({name for slices in outcomes.slices for name in slices})
    return [(name, np.flatnonzero([name in slices for slices in outcomes.slices])) for name in names]


def _accuracy(metric: str, scores: NDArray[np.float64], groups: NDArray[np.int64], seed: int) -> Measurement:
    interval = mean_score_interval(scores, groups, seed=seed)
    return _measurement(metric, interval, float(scores.mean()), len(scores), "share")


def _measurement(metric: str, interval: Interval, value: float, n: int, unit: str) -> Measurement:
    return Measurement(metric=metric, low=interval.low, value=value, high=interval.high, n=n, unit=unit)


def _is_binary(scores: Sequence[float] | NDArray[np.float64]) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())
