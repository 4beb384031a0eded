"""Faults of a data set that only its images show: those that can't be read, and photos of ``test`` in other splits."""

from __future__ import annotations

import filecmp
import hashlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset
from vlm_edge.digests import read_record, write_record
from vlm_edge.errors import VlmEdgeError
from vlm_edge.machine import usable_cpus
from vlm_edge.processing.images import read_image
from vlm_edge.processing.manifest import Transparency

MAX_READ = 2000
"""Images of a split that are decoded, evenly over it. A run names the others that it can't read."""
_HEAD_BYTES = 2**16


def unreadable_images(dataset: Dataset, transparency: Transparency, progress: Progress) -> tuple[dict[str, str], int]:
    """Reasons why images can't be read, by their name, and the number of images; ``transparency`` as the model has it.

    The result is remembered with the data set's digest, so that unchanged images are decoded once.
    """
    images = list(dict.fromkeys(sample.image for sample in dataset.samples))
    images = images[:: -(-len(images) // MAX_READ)]
    name = f"{dataset.digest}.images-{transparency}"
    known = read_record(name).get("unreadable")
    if isinstance(known, dict) and all(isinstance(text, str) for text in known.values()):
        return known, len(images)
    unreadable = {}
    problem_of = partial(_problem, transparency=transparency)
    threads = min(4, usable_cpus())
    with progress.bar(f"reading {dataset.split} images", len(images)) as bar, ThreadPoolExecutor(threads) as pool:
        for image, problem in zip(images, pool.map(problem_of, images), strict=True):
            bar.advance()
            if problem is not None:
                unreadable[image.name] = problem
    write_record(name, {"unreadable": unreadable})
    return unreadable, len(images)


def _problem(image: Path, transparency: Transparency) -> str | None:
    try:
        read_image(image, transparency)
    except VlmEdgeError as error:
        return error.message
    return None


def shared_images(test: Dataset, other: Dataset) -> list[tuple[Path, Path]]:
    """(image of ``other``, image of ``test``) of every two files with the same bytes."""
    tested, others = _by_size(test), _by_size(other)
    pairs = []
    for size in tested.keys() & others.keys():  # files of other sizes need not be read
        heads = {_head(image): image for image in tested[size]}
        for image in others[size]:
            twin = heads.get(_head(image))
            if twin is not None and filecmp.cmp(image, twin, shallow=False):
                pairs.append((image, twin))
    return sorted(pairs)


def _by_size(dataset: Dataset) -> dict[int, list[Path]]:
    sizes: dict[int, list[Path]] = defaultdict(list)
    for image in dict.fromkeys(sample.image for sample in dataset.samples):
        sizes[image.stat().st_size].append(image)
    return sizes


def _head(image: Path) -> bytes:
    with image.open("rb") as file:
        return hashlib.sha256(file.read(_HEAD_BYTES)).digest()
