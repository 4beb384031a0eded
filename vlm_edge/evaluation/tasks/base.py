"""The parts of a task's evaluation, and the images that all tasks read alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array
from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset, Sample, check_unreadable
from vlm_edge.data.kinds import TaskKind
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.outcomes import Embeddings, Outcomes
from vlm_edge.processing.images import Pixels, read_image
from vlm_edge.processing.manifest import ImageProcessing
from vlm_edge.runtime.capabilities import Capability

IMAGES_AT_ONCE = 16
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Result of a task's ``run``: one entry a sample in every column, in the order of ``samples``.

    ``samples`` are those of the data set whose image could be read, in its order; ``unreadable`` gives the reason for
    the other images. The columns are :class:`Outcomes`' own; without ``groups`` a sample's group is its image.
    """

    samples: Sequence[Sample]
    scores: Mapping[str, Sequence[float]]
    predictions: Sequence[str]
    unreadable: Mapping[Path, str] = field(default_factory=dict)
    groups: Sequence[str] | None = None
    expected: Sequence[str] | None = None
    tokens: Sequence[Sequence[int]] | None = None
    embeddings: Embeddings | None = None
    notes: Sequence[str] = ()
    """Sentences for the record: what was left out of the inputs."""


@dataclass(frozen=True)
class Summary:
    """A metric that is no mean of per-sample scores, such as F1: a function of the sums of per-sample columns.

    ``columns`` makes the columns (samples, k) from the outcomes; ``statistic`` takes their sums over samples
    (..., k) to the metric (...), in 0..1 and NaN where it is not defined. ``kinds`` lists what the columns of a sample
    can be: one array (kinds, k) for each right answer.
    """

    metric: str
    columns: Callable[[Outcomes], Floats]
    statistic: Callable[[Floats], Floats]
    kinds: tuple[Floats, ...]


class Query(NamedTuple):
    """One sample as a latency measurement asks it: an RGB image in memory, its text, and the data set's classes."""

    image: Pixels
    text: str
    labels: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskEvaluation:
    """One row of the table of tasks.

    Args:
        kind: the kind of data set.
        primary: what the field calls the metric that is reported as ``accuracy``.
        needs: capabilities of which a pipeline has to have one.
        run: (pipeline, data set, progress) -> rows. Its scores begin with ``accuracy``.
        answer: (pipeline, query) -> the answer: the path whose latency is measured.
        metrics: further columns of its scores, beside ``accuracy``.
        units: of the metrics whose scores are no shares, which are in 0..1.
        summaries: the metrics that are no mean of per-sample scores.
    """

    kind: TaskKind
    primary: str
    needs: tuple[Capability, ...]
    run: Callable[[Any, Dataset, Progress], Rows]
    answer: Callable[[Any, Query], object]
    metrics: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    summaries: tuple[Summary, ...] = ()


def samples_by_image(dataset: Dataset) -> dict[Path, list[Sample]]:
    """Every image's samples, both in the data set's order."""
    images: dict[Path, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        images[sample.image].append(sample)
    return dict(images)


def decoded_images(
    spec: ImageProcessing, dataset: Dataset, progress: Progress, unreadable: dict[Path, str]
) -> Iterator[dict[Path, Pixels]]:
    """Every image once, some at a time, as the model of ``spec`` sees it. Those that cannot be read go to
    ``unreadable`` with the reason.

    Raises:
        VlmEdgeError: more than 1% of the images cannot be read.
    """
    paths = list(samples_by_image(dataset))
    with progress.bar(f"{dataset.name}: {len(dataset.samples):,} samples", len(paths)) as bar:
        for start in range(0, len(paths), IMAGES_AT_ONCE):
            part = paths[start : start + IMAGES_AT_ONCE]
            decoded = {}
            for path in part:
                try:
                    decoded[path] = read_image(path, spec.transparency)
                except VlmEdgeError as error:
                    unreadable[path] = error.message
            reasons = {path.name: reason for path, reason in unreadable.items()}
            check_unreadable(dataset.name, dataset.split, reasons, len(paths))
            if decoded:
                yield decoded
            bar.advance(len(part))


def readable_samples(dataset: Dataset, unreadable: Mapping[Path, str]) -> list[Sample]:
    """The samples whose image could be read, in the data set's order."""
    return [sample for sample in dataset.samples if sample.image not in unreadable]


def every_image(
    compute: Callable[[Sequence[Pixels]], Array], spec: ImageProcessing, dataset: Dataset, progress: Progress
) -> tuple[Array, list[Sample], list[int], dict[Path, str]]:
    """``compute`` applied to every image, some at a time.

    Returns:
        Its results (images, dim); the samples whose image could be read; the row of each one's image; and the reason
        for every image that could not be read.
    """
    unreadable: dict[Path, str] = {}
    parts: list[Array] = []
    row_of: dict[Path, int] = {}
    for images in decoded_images(spec, dataset, progress, unreadable):
        parts.append(compute(list(images.values())))
        row_of |= {path: row for row, path in enumerate(images, start=len(row_of))}
    samples = readable_samples(dataset, unreadable)
    return np.concatenate(parts), samples, [row_of[sample.image] for sample in samples], unreadable
