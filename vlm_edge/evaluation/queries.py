"""The queries whose latency is measured: a seeded draw from a task's test split, end to end."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vlm_edge.core.stage import TaskSpec
from vlm_edge.data import load_dataset
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.tasks import task_for
from vlm_edge.evaluation.tasks.base import Query
from vlm_edge.processing.images import Pixels, read_image
from vlm_edge.runtime.capabilities import Pipeline

MAX_SAMPLE_BYTES = 64 * 2**20
"""Decoded images that are kept in memory, so that they weigh little in the peak that is reported."""

Samples = dict[str, Any]
"""JSON: ``task`` is a kind, ``items`` a list of [image path, text]; ``labels`` and ``prompts`` are its classes."""


def draw_samples(task: TaskSpec, count: int, seed: int) -> Samples:
    """``count`` samples of the test split, for every worker to load.

    Raises:
        VlmEdgeError: the data set can't be read or is of another kind than the task.
    """
    dataset = load_dataset(task.data, "test")
    if dataset.kind != task.kind:
        raise VlmEdgeError(f"{task.data}: of kind {dataset.kind}, the recipe's task is of kind {task.kind}")
    drawn = random.Random(seed).sample(dataset.samples, min(count, len(dataset.samples)))
    items = [[str(sample.image.resolve()), sample.text] for sample in drawn]
    return {"task": dataset.kind, "items": items, "labels": dataset.labels, "prompts": dataset.prompts}


def read_images(samples: Samples) -> list[tuple[Pixels, str]]:
    """Decoded RGB images with their texts, as many as may be held. Images that can't be read are left out.

    Raises:
        VlmEdgeError: none of them can be read.
    """
    found: list[tuple[Pixels, str]] = []
    held, reason = 0, "no sample"
    for path, text in samples["items"]:
        try:
            image = read_image(Path(path), "white")  # what transparent pixels become changes no time
        except VlmEdgeError as error:
            reason = error.message
            continue
        held += image.nbytes
        if found and held > MAX_SAMPLE_BYTES:
            break
        found.append((image, text))
    if not found:
        raise VlmEdgeError(f"none of the images to measure the latency with can be read: {reason}")
    return found


def queries_of(pipeline: Pipeline, images: list[tuple[Pixels, str]], samples: Samples) -> list[Callable[[], object]]:
    """One call for each image, from the RGB image in memory (and its text) to the answer.

    Raises:
        VlmEdgeError: such a pipeline can't do the samples' task.
    """
    task, labels, prompts = task_for(pipeline, samples["task"]), tuple(samples["labels"]), tuple(samples["prompts"])
    return [partial(task.answer, pipeline, Query(image, text, labels, prompts)) for image, text in images]
