"""The task's metric for a stage that looks at its own result, on samples that no budget is judged on."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.core.budget import AccuracyBounds
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.stage import Progress, TaskSpec
from vlm_edge.data import load_dataset
from vlm_edge.data.dataset import Dataset, Sample, Split
from vlm_edge.data.manifest import read_dataset_manifest
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import EVALUATOR_VERSION, run_task
from vlm_edge.evaluation.paired_metrics import MeanMetric, score_metric
from vlm_edge.evaluation.resolution import bound_faults
from vlm_edge.evaluation.tasks import TASKS
from vlm_edge.evaluation.tasks.base import Rows
from vlm_edge.statistics.power import samples_for_drop

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
