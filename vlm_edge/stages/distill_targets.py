"""A teacher's targets for the training images: image tokens in the student's layout, and the answers' logits.

Without augmentation it says the same every time, so that it is asked once and its words are kept in the scratch folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_edge.core.stage import StageWork
from vlm_edge.stages.training import IMAGES_PER_PASS, Minibatch, autocast, flushed_denormals, training_device
from vlm_edge.stages.training_data import RowCache, TrainingSet
from vlm_edge.students.tokens import pool_tokens
from vlm_edge.training.learner import Learner, TrainingBatch

MAX_CACHE_BYTES = 2 * 1024**3
"""Larger caches (a vocabulary of 50,000, say) cost more than asking the teacher again."""

Targets = Callable[[Minibatch], tuple[Tensor, Tensor]]
"""(features, logits) for a minibatch: (images, tokens, hidden) or (images, dim), and (questions, ..., classes)."""


class Teacher:
    """The dense model, frozen, in evaluation mode on the training's device."""

    def __init__(self, learner: Learner, image: tuple[int, int], grid: tuple[int, int]) -> None:
        learner.to(training_device())
        learner.model.eval().requires_grad_(False)
        self._learner, self._image, self._grid = learner, image, grid
        self.recordable = learner.recordable

    @torch.no_grad()
    def ask(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Features in the student's layout, and logits from the teacher's own tokens."""
        features = self._learner.encode(batch)
        logits = self._learner.logits(features, batch)
        if features.ndim == 3:
            features = pool_tokens(features, self._image, self._grid)
        return features, logits

    def __call__(self, minibatch: Minibatch) -> tuple[Tensor, Tensor]:
        return self.ask(minibatch.batch)


class RecordedTeacher:
    """A teacher's words on every training image, in float16, read from ``work.scratch/teacher``."""

    def __init__(self, records: RowCache, data: TrainingSet) -> None:
        self._records = records
        self._slots = question_slots(data)

    def __call__(self, minibatch: Minibatch) -> tuple[Tensor, Tensor]:
        batch = minibatch.batch
        device = batch.labels.device
        records = self._records[minibatch.images]
        logits = records["logits"][batch.image_index.cpu().numpy(), self._slots[minibatch.questions]]
        if logits.ndim == 3:
            logits = logits[:, : batch.labels.shape[1]]
        features = torch.from_numpy(np.ascontiguousarray(records["features"]))
        return features.to(device).float(), torch.from_numpy(logits).to(device).float()


def question_slots(data: TrainingSet) -> NDArray[np.int64]:
    """(questions,): the place of each question among those of its image."""
    slots = np.zeros(len(data.samples), dtype=np.int64)
    for rows in data.rows:
        slots[rows] = np.arange(len(rows))
    return slots


def record_teacher(teacher: Teacher, data: TrainingSet, work: StageWork, *, images: int | None = None) -> Targets:
    """Ask the teacher about every image once; where its words would take too much disk, ask at every step instead.

    ``images``: how many to decide by; default: those of ``data``.
    """
    if not teacher.recordable:
        return teacher
    dtype = _record_dtype(teacher, data)
    if dtype.itemsize * (images or len(data.images)) > MAX_CACHE_BYTES:
        return teacher

    def compute(rows: range) -> NDArray[Any]:
        records = np.zeros(len(rows), dtype=dtype)
        known = [row for row in rows if len(data.rows[row])]
        for start in range(0, len(known), IMAGES_PER_PASS):
            images = known[start : start + IMAGES_PER_PASS]
            batch = data.batch(images).to(training_device())
            with autocast(training_device()):
                features, logits = teacher.ask(batch)
            places = np.array(images) - rows.start
            slots = np.concatenate([np.arange(len(data.rows[image])) for image in images])
            records["features"][places] = features.float().cpu().numpy()
            _put(records["logits"], places[batch.image_index.cpu().numpy()], slots, logits.float().cpu().numpy())
        return records

    with flushed_denormals():
        records = RowCache(work.scratch / "teacher", len(data.images), compute).fill("teacher's answers", work)
    return RecordedTeacher(records, data)


def _put(logits: NDArray[Any], images: NDArray[np.int64], slots: NDArray[np.int64], values: NDArray[Any]) -> None:
    """values (questions, classes), or (questions, answer_tokens, classes) of which no later token is used here."""
    if values.ndim == 3:
        logits[images, slots, : values.shape[1]] = values
    else:
        logits[images, slots] = values


def _record_dtype(teacher: Teacher, data: TrainingSet) -> np.dtype[Any]:
    """One image's record: ``features``, and ``logits`` with a slot for each question of the image that has most."""
    first = int(data.usable_images[0])
    features, logits = teacher.ask(data.batch([first]).to(training_device()))
    questions = max(len(rows) for rows in data.rows)
    shape = tuple(logits.shape[1:])
    if logits.ndim == 3:
        every = data.batch(data.usable_images, pixels=False)
        shape = (every.labels.shape[1], *shape[1:])
    return np.dtype([("features", np.float16, tuple(features.shape[1:])), ("logits", np.float16, (questions, *shape))])


def hold_out(data: TrainingSet, images: int) -> tuple[TrainingSet, list[int]]:
    """The training set without the questions of its last images (at most a tenth), and these images' rows."""
    usable = [int(row) for row in data.usable_images]
    held = usable[len(usable) - min(images, len(usable) // 10) :]
    left_out = set(held)
    none = np.zeros(0, dtype=np.int64)
    rows = tuple(none if row in left_out else questions for row, questions in enumerate(data.rows))
    return replace(data, rows=rows), held
