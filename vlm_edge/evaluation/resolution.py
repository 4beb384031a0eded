"""Refuse budgets that a data set is too small to decide, before anything runs."""

from __future__ import annotations

from vlm_edge.core.budget import AccuracyBounds, Budgets
from vlm_edge.data.dataset import Dataset
from vlm_edge.evaluation.tasks import TASKS
from vlm_edge.names import near
from vlm_edge.statistics.power import samples_for_drop, samples_for_ratio, samples_for_share, smallest_drop

DIRECTIONS = ("image-to-text", "text-to-image")
"""Slices that a retrieval task makes itself."""


def budget_faults(dataset: Dataset, budgets: Budgets) -> list[tuple[str, str]]:
    """(key below ``budgets``, what is wrong) for each accuracy bound that no engine could be shown to keep.

    The samples of an image share its luck, so images are counted: with n of them, an engine that answers all alike
    still has z^2 / (n + z^2) as the upper end of its drop. Names of slices and metrics that the test split or the task
    don't have are faults too.
    """
    accuracy = budgets.accuracy
    if accuracy is None:
        return []
    task = TASKS[dataset.kind]
    images = len({sample.image for sample in dataset.samples})
    faults = bound_faults("accuracy", accuracy, images, shares="accuracy" not in task.units)
    slices = {name for sample in dataset.samples for name in sample.slices}
    slices |= set(DIRECTIONS) if dataset.kind == "retrieval" else set()
    for name, bounds in accuracy.slices.items():
        place = f"accuracy.slices.{name}"
        if name not in slices:
            faults.append((place, f"{dataset.name}'s test split has no such slice; {near(name, slices)}"))
            continue
        held = {sample.image for sample in dataset.samples if name in sample.slices}
        count = len(held) if held else images
        faults += bound_faults(place, bounds, count, shares="accuracy" not in task.units)
    known = {*task.metrics, *(summary.metric for summary in task.summaries)}
    for name, bounds in accuracy.metrics.items():
        place, metric = f"accuracy.metrics.{name}", name.partition("[")[0]
        if metric not in known:
            faults.append((place, f"the task {dataset.kind} has no such metric; {near(metric, known)}"))
        else:
            faults += bound_faults(place, bounds, images, shares=metric not in task.units)
    return faults


def bound_faults(place: str, bounds: AccuracyBounds, images: int, *, shares: bool) -> list[tuple[str, str]]:
    """Faults of the bounds on one metric, of which ``images`` independent samples are there."""
    if not shares:
        return []
    drop = smallest_drop(images)
    faults = []
    if bounds.max_drop_pt is not None and bounds.max_drop_pt / 100 < drop:
        needed = samples_for_drop(bounds.max_drop_pt / 100)
        shown = f"{images:,} images can't show a drop below {100 * drop:.3g} points, even if no answer changes"
        faults.append((f"{place}.max_drop_pt", f"{shown}; {_needed(needed, bounds.max_drop_pt)}"))
    if bounds.min_ratio is not None and bounds.min_ratio > 1 - drop:
        needed = samples_for_ratio(bounds.min_ratio)
        shown = f"{images:,} images can't show a ratio above {1 - drop:.4g}, even if no answer changes"
        faults.append((f"{place}.min_ratio", f"{shown}; {_needed(needed, bounds.min_ratio)}"))
    if bounds.at_least is not None and bounds.at_least > 1:
        faults.append((f"{place}.at_least", f"the metric is a share from 0 to 1 (got {bounds.at_least:g})"))
    elif bounds.at_least is not None and bounds.at_least > 1 - drop:
        needed = samples_for_share(bounds.at_least)
        shown = f"{images:,} images can't show more than {1 - drop:.4g}, even if every answer is right"
        faults.append((f"{place}.at_least", f"{shown}; {_needed(needed, bounds.at_least)}"))
    return faults


def _needed(needed: int | None, bound: float) -> str:
    return f"{needed:,} are needed for {bound:g}" if needed else f"no number of samples can show {bound:g}"
