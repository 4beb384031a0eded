"""Training data: images preprocessed as on the device, batches by image.

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
from vlm_edge.data.dataset import Dataset, Sample, Split, check_unreadable
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import write_atomically
from vlm_edge.processing.images import preprocess, read_image, read_images
from vlm_edge.processing.manifest import ImageProcessing
from vlm_edge.processing.picture import Picture
from vlm_edge.training.learner import Learner, TrainingBatch

CHUNK_ROWS = 128
MAX_OPEN_CHUNKS = 128
BLACK = np.zeros((64, 64, 3), np.uint8)
"""In the place of an image that cannot be read."""


class RowCache:
    """Rows of one array, computed by chunks of items, kept in ``folder`` as ``.npy`` files that are written atomically.

    An item is one row of what ``compute`` gives; or, with ``sizes``, so many of them.
    """

    def __init__(
        self,
        folder: Path,
        items: int,
        compute: Callable[[range], NDArray[Any]],
        sizes: Sequence[int] | None = None,
    ) -> None:
        self._folder = folder
        self._rows = items
        self._compute = compute
        self._ends = None if sizes is None else np.concatenate([[0], np.cumsum(sizes)])
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
        """The items' rows one after the other, in the order asked for: (len(rows), ...) without sizes."""
        if self._ends is None:
            return np.stack([self._chunk(int(row) // CHUNK_ROWS)[int(row) % CHUNK_ROWS] for row in rows])
        parts = []
        for row in map(int, rows):
            first = self._ends[row // CHUNK_ROWS * CHUNK_ROWS]
            parts.append(self._chunk(row // CHUNK_ROWS)[self._ends[row] - first : self._ends[row + 1] - first])
        return np.concatenate(parts)

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
    """Images and the questions about them, as ``learner`` reads them.

    ``rows`` lists each image's rows of ``samples``. ``cache`` holds uint8 (height, width, 3) rows, resized and cropped
    but not normalised: a quarter of the size, and exact, since the resize gives 8 bits. Images that are cut into tiles
    or keep their aspect have none and are prepared anew; ``pictures`` say what they become, without their pixels.
    """

    learner: Learner
    dataset: Dataset
    images: tuple[Path, ...]
    pictures: tuple[Picture, ...]
    cache: RowCache | None
    unreadable: frozenset[str]
    rows: tuple[NDArray[np.int64], ...]
    samples: tuple[Sample, ...]

    @property
    def usable_images(self) -> NDArray[np.int64]:
        """The rows of ``images`` that could be read and that a question asks about."""
        return np.flatnonzero([len(rows) > 0 for rows in self.rows])

    def pixels(self, images: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        """The vision encoder's inputs, normalised as the model wants them, by name."""
        if self.cache is not None:
            return {"pixel_values": torch.from_numpy(preprocess(list(self.cache[images]), self.learner.image))}
        return self.learner.pixels([self._picture(int(image)) for image in images])

    def seen(self, images: Sequence[int] | NDArray[np.int64]) -> TrainingBatch:
        """Images alone, without a question."""
        none, rows = torch.zeros(0, dtype=torch.int64), tuple(self.pictures[int(image)].tiles for image in images)
        return TrainingBatch(none, {}, none, rows, self.pixels(images))

    def _picture(self, image: int) -> Picture:
        path = self.images[image]
        return self.learner.picture(
            BLACK if str(path) in self.unreadable else read_image(path, self.learner.image.transparency)
        )

    def choose(
        self,
        images: Sequence[int] | NDArray[np.int64],
        *,
        questions_per_image: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> list[NDArray[np.int64]]:
        """For each of ``images`` its rows of ``samples``: all, or a random choice of so many."""
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
        chosen: Sequence[NDArray[np.int64]] | None = None,
        pixels: bool = True,
    ) -> TrainingBatch:
        """All questions of ``images``, or those that :meth:`choose` gave before.

        ``pixels=False`` leaves the pixels out, for trainings on cached image features.
        """
        rows = chosen if chosen is not None else self.choose(images)
        index = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
        samples = [self.samples[row] for row in np.concatenate(list(rows))]
        batch = self.learner.batch(samples, index, [self.pictures[int(image)] for image in images], self.dataset)
        return replace(batch, pixels=self.pixels(images)) if pixels else batch


def load_training_set(
    task: TaskSpec, learner: Learner, work: StageWork, *, split: Split = "train", limit: int | None = None
) -> TrainingSet:
    """Load ``split`` of the task's data for ``learner``, and preprocess its images into ``work.scratch`` where they
    all have one size.

    Images that cannot be read are left out and named in ``work.facts["skipped_images"]``.

    Raises:
        VlmEdgeError: the data set is empty, more than 1% of its images cannot be read, or :meth:`Learner.check` refuses
            it.
    """
    dataset = load_dataset(task.data, split, limit=limit)
    paths = tuple(dict.fromkeys(sample.image for sample in dataset.samples))
    cache = None
    if learner.image.tiles is None:
        cache, bad = _cache_pixels(paths, learner.image, work.scratch / f"pixels-{dataset.digest[:16]}", work)
        pictures = (_without_pixels(learner.picture(BLACK)),) * len(paths)
    else:
        pictures, bad = _look(paths, learner, work)
    if bad:
        work.facts["skipped_images"] = bad
    check_unreadable(dataset.name, split, bad, len(paths))
    rows = {path: row for row, path in enumerate(paths) if str(path) not in bad}
    samples = tuple(sample for sample in dataset.samples if sample.image in rows)
    if not samples:
        raise VlmEdgeError(f"{task.data}: the {split} split of {dataset.name} is empty")
    learner.check(replace(dataset, samples=samples), pictures)
    index = np.array([rows[sample.image] for sample in samples], dtype=np.int64)
    counts = np.bincount(index, minlength=len(paths))
    by_image = np.split(np.argsort(index, kind="stable"), np.cumsum(counts)[:-1])
    return TrainingSet(learner, dataset, paths, pictures, cache, frozenset(bad), tuple(by_image), samples)


def _look(paths: Sequence[Path], learner: Learner, work: StageWork) -> tuple[tuple[Picture, ...], dict[str, str]]:
    """Every image's picture without its pixels, and the reasons why some could not be read."""
    pictures: list[Picture] = []
    bad: dict[str, str] = {}
    with work.progress.bar("training images", len(paths)) as bar:
        for path in paths:
            image = BLACK
            try:
                image = read_image(path, learner.image.transparency)
            except VlmEdgeError as error:
                bad[str(path)] = str(error)
            pictures.append(_without_pixels(learner.picture(image)))
            bar.advance()
    return tuple(pictures), bad


def _without_pixels(picture: Picture) -> Picture:
    """The picture with pixels of the same shape that take no memory."""
    empty = np.broadcast_to(np.float32(0), picture.inputs["pixel_values"].shape)
    return replace(picture, inputs={**picture.inputs, "pixel_values": empty})


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
