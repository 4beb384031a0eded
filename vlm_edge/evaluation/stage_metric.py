"""Bounds that a data set is too small to decide; samples that no budget is judged on, for a stage's own metric."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.core.budget import AccuracyBounds, Budgets
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.stage import Progress, TaskSpec
from vlm_edge.data import load_dataset
from vlm_edge.data.dataset import Dataset, Sample, Split
from vlm_edge.data.manifest import read_dataset_manifest
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import EVALUATOR_VERSION, run_task
from vlm_edge.evaluation.paired_metrics import MeanMetric, score_metric
from vlm_edge.evaluation.tasks import TASKS
from vlm_edge.evaluation.tasks.base import Rows
from vlm_edge.names import near
from vlm_edge.statistics.intervals import samples_for_drop, smallest_drop

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
    drop_limit = f"images can't show a drop below {100 * drop:.3g} points, even if no answer changes"
    checked = (
        ("max_drop_pt", bounds.max_drop_pt, drop_limit),
        ("min_ratio", bounds.min_ratio, f"images can't show a ratio above {1 - drop:.4g}, even if no answer changes"),
        ("at_least", bounds.at_least, f"images can't show more than {1 - drop:.4g}, even if every answer is right"),
    )
    faults = []
    for key, bound, limit in checked:
        if bound is None:
            continue
        allowed = bound / 100 if key == "max_drop_pt" else 1 - bound
        if allowed < 0:
            faults.append((f"{place}.{key}", f"the metric is a share from 0 to 1 (got {bound:g})"))
        elif allowed < drop:
            needed = samples_for_drop(allowed)
            enough = f"{needed:,} are needed for {bound:g}" if needed else f"no number of samples can show {bound:g}"
            faults.append((f"{place}.{key}", f"{images:,} {limit}; {enough}"))
    return faults


WITHOUT_A_BOUND = 256
"""Images that are drawn where no bound says how many are needed."""


@dataclass(frozen=True)
class DrawnSamples:
    """All samples of the images that were drawn."""

    dataset: Dataset

    @property
    def split(self) -> str:
        return self.dataset.split

    @property
    def images(self) -> int:
        return len({sample.image for sample in self.dataset.samples})

    @property
    def samples(self) -> int:
        return len(self.dataset.samples)

    def outcomes(self, pipeline: Any, progress: Progress) -> Rows:
        """The pipeline's result for each sample.

        Raises:
            VlmEdgeError: it can't do the task, or more than 1% of the images cannot be read.
        """
        return run_task(pipeline, self.dataset, progress, place=self.dataset.name)

    def drop(self, baseline: Rows, candidate: Rows, seed: int) -> Measurement:
        """``accuracy_drop_pt`` with the interval that budgets are judged on: paired, by images."""
        metric, task = "accuracy", TASKS[self.dataset.kind]
        before, after = (np.asarray(rows.scores[metric], np.float64) for rows in (baseline, candidate))
        names = candidate.groups or [str(sample.image) for sample in candidate.samples]
        groups = np.unique(np.asarray(names), return_inverse=True)[1]
        if metric in task.units:
            found = score_metric(metric, before, after, groups, False, seed, task.units[metric]).changes()
        else:
            found = MeanMetric(metric, before, after, groups, False, seed).changes()
        return next(each for each in found if each.metric == f"{metric}_drop_pt")


class DrawnMetric:
    """Draws whole images from the ``train`` split, or from ``calibration`` where there is no other, seeded as that."""

    version = EVALUATOR_VERSION

    def samples(
        self, task: TaskSpec, *, max_drop_pt: float | None, images: int | None, without: Collection[Path]
    ) -> DrawnSamples:
        """``images`` of them; by default so many that half of ``max_drop_pt`` is left for answers that change.

        Raises:
            VlmEdgeError: there are fewer than ``max_drop_pt`` needs even if no answer changes, or none at all.
        """
        splits = read_dataset_manifest(task.data).splits
        split: Split = "train" if "train" in splits else "calibration"
        dataset = load_dataset(task.data, split)
        wanted = images or (samples_for_drop(max_drop_pt / 200) if max_drop_pt else None) or WITHOUT_A_BOUND
        samples = _drawn(dataset, frozenset(without), wanted, splits[split].seed)
        drawn = DrawnSamples(replace(dataset, samples=samples))
        place = f"{dataset.name}'s {split} split without the images that are calibrated on"
        if not samples:
            raise VlmEdgeError(f"{place} has no sample left", "give the data set a larger train split")
        bounds, shares = AccuracyBounds(max_drop_pt=max_drop_pt), "accuracy" not in TASKS[dataset.kind].units
        for key, fault in bound_faults("quantize", bounds, drawn.images, shares=shares):
            raise VlmEdgeError(f"{key}: {place}: {fault}", "draw more images, or allow a larger drop")
        return drawn


def _drawn(dataset: Dataset, without: frozenset[Path], count: int, seed: int) -> tuple[Sample, ...]:
    """All samples of ``count`` images, in the data set's order; a smaller draw is part of a larger one."""
    images = [image for image in dict.fromkeys(sample.image for sample in dataset.samples) if image not in without]
    random.Random(seed).shuffle(images)
    chosen = frozenset(images[:count])
    return tuple(sample for sample in dataset.samples if sample.image in chosen)
