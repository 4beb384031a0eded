"""Training data: every image preprocessed once, every question tokenized once, batches by image.

Rows are computed once into chunk files under a scratch folder and read back memory-mapped, so a killed stage goes on
where it was and a data set need not fit in memory.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_edge.core.stage import StageWork, TaskSpec
from vlm_edge.data import load_dataset
from vlm_edge.data.dataset import Sample, Split
from vlm_edge.data.unreadable import check_unreadable
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import Family, TrainingBatch
from vlm_edge.files import write_atomically
from vlm_edge.processing.images import preprocess, read_images
from vlm_edge.processing.manifest import ImageProcessing
from vlm_edge.training.losses import IGNORED

CHUNK_ROWS = 128
MAX_OPEN_CHUNKS = 128


class RowCache:
    """Rows of one array, computed by chunks, kept in ``folder`` as ``.npy`` files that are written atomically."""

    def __init__(self, folder: Path, rows: int, compute: Callable[[range], NDArray[Any]]) -> None:
        self._folder = folder
        self._rows = rows
        self._compute = compute
        self._chunks: dict[int, NDArray[Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def fill(self, label: str, work: StageWork) -> RowCache:
        """Compute every chunk that is not there yet."""
        starts = range(0, self._rows, CHUNK_ROWS)
        with work.progress.bar(label, self._rows) as bar:
            for start in starts:
                first = self._chunk(start // CHUNK_ROWS)
                if start == 0:
                    self._check_space(label, first.nbytes)
                bar.advance(min(CHUNK_ROWS, self._rows - start))
        return self

    def __getitem__(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """(len(rows), ...) in the order asked for."""
        return np.stack([self._chunk(int(row) // CHUNK_ROWS)[int(row) % CHUNK_ROWS] for row in rows])

    def _check_space(self, label: str, chunk_bytes: int) -> None:
        """Fail now rather than on the last chunk."""
        there = len(list(self._folder.glob("*.npy")))
        needed = chunk_bytes * (math.ceil(self._rows / CHUNK_ROWS) - there)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise VlmEdgeError(
                f"{self._folder}: {label} of {self._rows} images need {needed / 2**30:.1f} GiB more, and "
                f"{free / 2**30:.1f} GiB are free",
                "train on fewer samples, or put the store on a larger disk",
            )

    def _chunk(self, number: int) -> NDArray[Any]:
        if number not in self._chunks:
            path = self._folder / f"{number:06d}.npy"
            if not path.is_file():
                start = number * CHUNK_ROWS
                buffer = io.BytesIO()
                np.save(buffer, self._compute(range(start, min(start + CHUNK_ROWS, self._rows))), allow_pickle=False)
                write_atomically(path, buffer.getvalue())
            if len(self._chunks) == MAX_OPEN_CHUNKS:  # every open one holds a file descriptor
                del self._chunks[next(iter(self._chunks))]
            self._chunks[number] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._chunks[number]


@dataclass(frozen=True)
class TrainingSet:
    """Images and the questions about them.

    ``questions`` holds all questions, tokenized and padded to one length, with ``image_index`` pointing into
    ``images`` and no pixels; ``rows`` lists each image's rows of it. ``pixels`` holds uint8 (height, width, 3)
    rows, resized and cropped but not normalised: a quarter of the size, and exact, since the resize gives 8 bits.
    """

    images: tuple[Path, ...]
    pixels: RowCache
    image_processing: ImageProcessing
    questions: TrainingBatch
    rows: tuple[NDArray[np.int64], ...]
    samples: tuple[Sample, ...]
    """In the order of ``questions``' rows."""

    @property
    def usable_images(self) -> NDArray[np.int64]:
        """The rows of ``images`` that could be read and that a question asks about."""
        return np.flatnonzero([len(rows) > 0 for rows in self.rows])

    def pixel_values(self, images: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(len(images), 3, height, width) float32, normalised as the model wants it."""
        return torch.from_numpy(preprocess(list(self.pixels[images]), self.image_processing))

    def choose(
        self,
        images: Sequence[int] | NDArray[np.int64],
        *,
        questions_per_image: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> list[NDArray[np.int64]]:
        """For each of ``images`` its rows of ``questions``: all, or a random choice of so many."""
        chosen = []
        generator = rng if rng is not None else np.random.default_rng(0)
        for image in images:
            rows = self.rows[int(image)]
            if questions_per_image is not None and len(rows) > questions_per_image:
                rows = np.sort(generator.choice(rows, questions_per_image, replace=False))
            chosen.append(rows)
        return chosen

    def batch(
        self,
        images: Sequence[int] | NDArray[np.int64],
        *,
        questions_per_image: int | None = None,
        rng: np.random.Generator | None = None,
        chosen: Sequence[NDArray[np.int64]] | None = None,
        pixels: bool = True,
    ) -> TrainingBatch:
        """The questions of ``images``, all or a random choice, or those that :meth:`choose` gave before; padding that
        no question needs is cut off.

        ``pixels=False`` leaves ``pixel_values`` (0, 3, height, width), for trainings on cached image features.
        """
        rows = chosen
        if rows is None:
            rows = self.choose(images, questions_per_image=questions_per_image, rng=rng)
        index = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
        batch = _select(self.questions, torch.from_numpy(np.concatenate(list(rows))))
        batch = replace(batch, image_index=torch.from_numpy(index))
        return replace(batch, pixel_values=self.pixel_values(images)) if pixels else batch


def _select(batch: TrainingBatch, rows: Tensor) -> TrainingBatch:
    """The questions ``rows``; columns that are padding in all of them are cut off. Candidates' prompts stay whole."""
    if batch.decoder_input_ids is None or batch.labels is None:
        return replace(batch, labels=None if batch.labels is None else batch.labels[rows])
    mask, labels = batch.attention_mask[rows], batch.labels[rows]
    tokens = _used(mask == 1)
    answers = slice(0, _used(labels != IGNORED).stop)
    return replace(
        batch,
        input_ids=batch.input_ids[rows][:, tokens],
        attention_mask=mask[:, tokens],
        decoder_input_ids=batch.decoder_input_ids[rows][:, answers],
        labels=labels[:, answers],
    )


def _used(mask: Tensor) -> slice:
    """The columns from the first to the last that hold a true value."""
    columns = mask.any(dim=0).nonzero().flatten()
    return slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, mask.shape[1])


def load_training_set(
    task: TaskSpec,
    family: Family,
    checkpoint: Path,
    work: StageWork,
    *,
    split: Split = "train",
    limit: int | None = None,
) -> TrainingSet:
    """Load ``split`` of the task's data, preprocess its images into ``work.scratch`` and tokenize its questions.

    ``checkpoint`` is the folder whose tokenizer and image processor are used. Images that cannot be read are left out
    and named in ``work.facts["skipped_images"]``.

    Raises:
        VlmEdgeError: the data set is empty, or more than 1% of its images cannot be read.
    """
    dataset = load_dataset(task.data, split, limit=limit)
    spec = family.image_processing(checkpoint)
    paths = tuple(dict.fromkeys(sample.image for sample in dataset.samples))
    pixels, bad = _cache_pixels(paths, spec, work.scratch / f"pixels-{dataset.digest[:16]}", work)
    if bad:
        work.facts["skipped_images"] = bad
    check_unreadable(dataset.name, split, bad, len(paths))
    rows = {path: row for row, path in enumerate(paths) if str(path) not in bad}
    samples = tuple(sample for sample in dataset.samples if sample.image in rows)
    if not samples:
        raise VlmEdgeError(f"{task.data}: the {split} split of {dataset.name} is empty")
    index = np.array([rows[sample.image] for sample in samples], dtype=np.int64)
    empty = torch.zeros((0, 3, spec.height, spec.width))
    questions = family.collate(
        samples, empty, torch.from_numpy(index), checkpoint, labels=dataset.labels, prompts=dataset.prompts
    )
    counts = np.bincount(index, minlength=len(paths))
    by_image = np.split(np.argsort(index, kind="stable"), np.cumsum(counts)[:-1])
    return TrainingSet(paths, pixels, spec, questions, tuple(by_image), samples)


def _cache_pixels(
    paths: Sequence[Path], spec: ImageProcessing, folder: Path, work: StageWork
) -> tuple[RowCache, dict[str, str]]:
    """All images as 8-bit rows, and the reasons why some could not be read (their rows are zeros)."""
    raw = spec.model_copy(update={"rescale_factor": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    record = folder / "unreadable.json"
    bad: dict[str, str] = json.loads(record.read_bytes()) if record.is_file() else {}

    def compute(rows: range) -> NDArray[Any]:
        pixels = np.zeros((len(rows), spec.height, spec.width, 3), dtype=np.uint8)
        known = len(bad)
        for position, row in enumerate(rows):
            try:
                pixels[position] = preprocess(read_images([paths[row]], raw), raw)[0].transpose(1, 2, 0)
            except VlmEdgeError as error:
                bad[str(paths[row])] = str(error)
        if len(bad) > known:
            write_atomically(record, json.dumps(bad).encode())
        return pixels

    cache = RowCache(folder, len(paths), compute)
    cache.fill("training images", work)
    return cache, bad
