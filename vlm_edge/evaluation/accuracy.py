"""Accuracy of an engine on its task's test split, through the code that answers on the device."""

from __future__ import annotations

import os
from pathlib import Path

from vlm_edge.core.artifact import digest_folder
from vlm_edge.core.stage import Progress, SilentProgress, TaskSpec
from vlm_edge.data import load_dataset
from vlm_edge.data.dataset import Dataset
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.comparison import compare, describe
from vlm_edge.evaluation.outcomes import Outcomes, Skipped
from vlm_edge.evaluation.tasks import task_for
from vlm_edge.evaluation.tasks.base import Rows
from vlm_edge.runtime import load_pipeline
from vlm_edge.runtime.capabilities import Pipeline

__all__ = ["EVALUATOR_VERSION", "Outcomes", "compare", "describe", "evaluate"]

EVALUATOR_VERSION = "3"
"""Raised whenever the same engine and data would give other outcomes or another comparison."""


def evaluate(
    engine_folder: Path,
    task: TaskSpec,
    *,
    threads: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """Run every sample of the test split (or of a seeded draw of ``limit``) on the engine in ``engine_folder``.

    Each image is decoded and encoded once, for all its samples. An image that cannot be read is left out with its
    samples, which ``skipped`` names.

    Raises:
        VlmEdgeError: the engine or the data set cannot be loaded, they are of different kinds, or more than 1% of the
            images cannot be read.
    """
    dataset = load_dataset(task.data, "test", limit=limit)
    if dataset.kind != task.kind:
        raise VlmEdgeError(
            f"{task.data}: the data set is of kind {dataset.kind}, the recipe's task of kind {task.kind}",
            f"write `task: {{kind: {dataset.kind}, ...}}`, or name other data",
        )
    pipeline = load_pipeline(engine_folder, threads=threads)
    rows = run_task(pipeline, dataset, progress or SilentProgress(), place=str(engine_folder))
    return outcomes_of(dataset, rows, digest_folder(engine_folder))


def run_task(pipeline: Pipeline, dataset: Dataset, progress: Progress, *, place: str) -> Rows:
    """Run every sample of a data set through a pipeline; ``place`` names it in errors.

    Raises:
        VlmEdgeError: such a pipeline can't do the task, or more than 1% of the images cannot be read.
    """
    try:
        task = task_for(pipeline, dataset.kind)
    except VlmEdgeError as error:
        raise VlmEdgeError(f"{place}: {error.message}", error.hint) from error
    return task.run(pipeline, dataset, progress)


def outcomes_of(dataset: Dataset, rows: Rows, engine: str) -> Outcomes:
    """The outcomes to keep of a data set's rows; ``engine`` is the digest of the engine that made them."""
    folder = Path(os.path.commonpath([sample.image.parent for sample in dataset.samples]))
    names = {sample.image: sample.image.relative_to(folder).as_posix() for sample in dataset.samples}
    bad = rows.unreadable
    return Outcomes(
        task=dataset.kind,
        engine=engine,
        data=dataset.digest,
        ids=tuple(sample.id for sample in rows.samples),
        groups=tuple(rows.groups or (names[sample.image] for sample in rows.samples)),
        scores={metric: tuple(column) for metric, column in rows.scores.items()},
        predictions=tuple(rows.predictions),
        slices=tuple(sample.slices for sample in rows.samples),
        expected=None if rows.expected is None else tuple(rows.expected),
        tokens=None if rows.tokens is None else tuple(map(tuple, rows.tokens)),
        embeddings=rows.embeddings,
        notes=tuple(rows.notes),
        skipped=tuple(
            Skipped(id=sample.id, image=names[sample.image], reason=bad[sample.image].replace(f"{folder}/", ""))
            for sample in dataset.samples
            if sample.image in bad
        ),
    )
