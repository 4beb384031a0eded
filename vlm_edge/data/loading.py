"""A manifest's split as samples, the digest that stands for it, and faults that only its images show."""

from __future__ import annotations

import filecmp
import hashlib
import heapq
import json
import os
import random
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vlm_edge.core.artifact import digest_line
from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset, Sample, Split
from vlm_edge.data.manifest import DatasetManifest, SplitSpec, read_dataset_manifest
from vlm_edge.data.sources import OpenSource, open_source
from vlm_edge.digests import file_digests, read_record, write_record
from vlm_edge.documents import reason
from vlm_edge.errors import VlmEdgeError, short
from vlm_edge.machine import usable_cpus
from vlm_edge.processing.images import read_image
from vlm_edge.processing.manifest import Transparency

_HINT = "restore this file of the data, or remove it"


def content_digest(folder: Path) -> str:
    """Hex sha256 over the lines of ``sha256sum`` for every file below ``folder``, sorted by path.

    Hidden files are left out. A name with a backslash or a line's end is written as sha256sum writes it, so that no
    other files give the same lines.

    Raises:
        VlmEdgeError: the folder is missing or holds no file, or something in it can't be read or is no regular file.
    """
    try:
        names = sorted(_names(folder, "", frozenset()))
    except OSError as error:
        raise VlmEdgeError(f"{short(str(error.filename))}: can't be read: {reason(error)}", _HINT) from error
    if not names:
        raise VlmEdgeError(f"{folder}: no such folder, or it holds no file", "check the data manifest's source")
    total = hashlib.sha256()
    for name, digest in file_digests(folder, names, _HINT).items():
        total.update(digest_line(digest, name))
    return total.hexdigest()


def _names(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """The relative path of every file below ``folder`` that is not hidden.

    ``above`` are the folders on the way here, to which a link could lead back.
    """
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                status = entry.stat()
            except FileNotFoundError as error:
                raise OSError(error.errno, "a link to what is not there", entry.path) from error
            if stat.S_ISDIR(status.st_mode):
                here = (status.st_dev, status.st_ino)
                if here in above:
                    raise OSError(0, "a link to a folder that it lies in", entry.path)
                yield from _names(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
            elif stat.S_ISREG(status.st_mode):
                yield f"{prefix}{entry.name}"
            else:
                raise OSError(0, "a pipe, socket or device, no file", entry.path)


READER_VERSION = 1
"""Raised whenever the same manifest and content would give other samples."""


def load_dataset(manifest_path: Path, split: Split, *, limit: int | None = None) -> Dataset:
    """The samples of one split.

    ``limit`` draws at most so many, by answer for ``calibration`` and by whole images for the others, with the split's
    seed. No image of ``test`` is in another split.

    Raises:
        VlmEdgeError: a fault in the manifest or in the source, a digest that differs, a split that the manifest does
            not have, no sample, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise VlmEdgeError(f"{manifest_path}: a limit of {limit} samples; give 1 or more")
    manifest = read_dataset_manifest(manifest_path)
    spec = _split_spec(manifest, manifest_path, split)
    source = open_source(manifest, manifest_path)
    digest = _digest(manifest, manifest_path, split, source)
    samples = _draw(manifest, source, split, spec, limit)
    if not samples:
        raise VlmEdgeError(
            f"{manifest_path}: splits.{split}: no sample in {source.part(spec.source_part)}",
            "add samples to the source, or read another part of it",
        )
    if limit is not None:
        digest = hashlib.sha256(f"{digest} limit {limit}".encode()).hexdigest()
    return Dataset(manifest.name, manifest.kind, split, tuple(samples), digest, manifest.labels, manifest.prompts)


def dataset_digest(manifest_path: Path, split: Split) -> str:
    """Hex sha256 over what decides a split's samples: content of the source, kind, classes, draw, reader.

    The manifest's texts (description, licence, preprocessing) are no part of it. Raises as :func:`load_dataset`.
    """
    manifest = read_dataset_manifest(manifest_path)
    _split_spec(manifest, manifest_path, split)
    return _digest(manifest, manifest_path, split, open_source(manifest, manifest_path))


def _split_spec(manifest: DatasetManifest, manifest_path: Path, split: Split) -> SplitSpec:
    if split not in manifest.splits:
        raise VlmEdgeError(
            f"{manifest_path}: no split {split}; it has: {', '.join(manifest.splits)}",
            f"add `{split}: {{from: PART}}` under splits",
        )
    return manifest.splits[split]


def _digest(manifest: DatasetManifest, manifest_path: Path, split: Split, source: OpenSource) -> str:
    spec, test = manifest.splits[split], manifest.splits.get("test")
    withheld = test if test is not None and test.source_part == spec.source_part else None
    part = spec.source_part
    content = content_digest(source.part(part))
    expected = manifest.digests.get(part, content)
    if content != expected:
        raise VlmEdgeError(
            f"{manifest_path}: digests.{part}: the content of {source.part(part)} is {content}, not {expected}",
            f"{source.restore}; if the change is meant, write the new digest into the manifest",
        )
    fields = {
        "reader": READER_VERSION,
        "name": manifest.name,
        "kind": manifest.kind,
        "content": content,
        "split": [split, part, spec.samples, spec.seed],
        "withheld": withheld and [withheld.samples, withheld.seed],
        "labels": manifest.labels,
        "prompts": manifest.prompts,
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _draw(
    manifest: DatasetManifest, source: OpenSource, split: Split, spec: SplitSpec, limit: int | None
) -> list[Sample]:
    samples = source.reader(manifest, source.part(spec.source_part))
    (identity, count), *_ = Counter(sample.id for sample in samples).most_common(1) or [("", 0)]
    if count > 1:  # outcomes are compared by id
        raise VlmEdgeError(
            f"{source.part(spec.source_part)}: two samples have the id {short(identity)}", "give each an id of its own"
        )
    test = manifest.splits.get("test")
    if split != "test" and test is not None and test.source_part == spec.source_part and test.samples is not None:
        withheld = {sample.image for sample in draw_whole_images(samples, test.samples, test.seed)}
        samples = [sample for sample in samples if sample.image not in withheld]
    wanted = [count for count in (spec.samples, limit) if count is not None]
    if not wanted:
        return samples
    draw = draw_stratified if split == "calibration" else draw_whole_images
    return draw(samples, min(wanted), spec.seed)


def draw_whole_images(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most ``count`` samples: images in a seeded order, each with all its samples (the last one's may be cut).

    A smaller draw of the same seed is part of a larger one. The order of ``samples`` is kept.
    """
    positions: dict[Path, list[int]] = defaultdict(list)
    for position, sample in enumerate(samples):
        positions[sample.image].append(position)
    images = list(positions)
    random.Random(seed).shuffle(images)
    chosen: list[int] = []
    for image in images:
        if len(chosen) >= count:
            break
        chosen.extend(positions[image])
    return [samples[position] for position in sorted(chosen[:count])]


def draw_stratified(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most ``count`` samples with the answers' own proportions, and every answer once if ``count`` allows it.

    Within an answer, images that were not drawn yet come first. The order of ``samples`` is kept.
    """
    strata: dict[str, list[int]] = defaultdict(list)
    for position, sample in enumerate(samples):
        strata[sample.answers[0]].append(position)
    generator = random.Random(seed)
    chosen: list[int] = []
    used: set[Path] = set()
    answers = sorted(strata)
    if count < len(answers):  # captions, say: which of the equally frequent ones is not to depend on the alphabet
        generator.shuffle(answers)
    shares = _shares({answer: len(strata[answer]) for answer in answers}, min(count, len(samples)))
    for answer, share in sorted(shares.items(), key=lambda item: len(strata[item[0]])):
        shuffled = generator.sample(strata[answer], len(strata[answer]))
        for position in _fresh_first(samples, shuffled, used)[:share]:
            chosen.append(position)
            used.add(samples[position].image)
    return [samples[position] for position in sorted(chosen)]


def _fresh_first(samples: Sequence[Sample], positions: Sequence[int], used: set[Path]) -> list[int]:
    """Positions on images that are not used, one an image, before the others."""
    fresh: dict[Path, int] = {}
    for position in positions:
        image = samples[position].image
        if image not in used:
            fresh.setdefault(image, position)
    first = set(fresh.values())
    return [*fresh.values(), *(position for position in positions if position not in first)]


def _shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """``count`` over the strata: one each while it lasts, largest first, then to the one furthest below its share."""
    total = sum(sizes.values())
    largest = sorted(sizes, key=lambda answer: -sizes[answer])
    shares = dict.fromkeys(sizes, 0) | dict.fromkeys(largest[:count], 1)
    # (how far above its share, its place, answer) of those that are not used up
    waiting = [
        (1 - count * sizes[answer] / total, place, answer) for place, answer in enumerate(sizes) if sizes[answer] > 1
    ]
    heapq.heapify(waiting)
    for _ in range(count - len(sizes)):
        _, place, answer = heapq.heappop(waiting)
        shares[answer] += 1
        if shares[answer] < sizes[answer]:
            heapq.heappush(waiting, (shares[answer] - count * sizes[answer] / total, place, answer))
    return shares


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

    def problem_of(image: Path) -> str | None:
        try:
            read_image(image, transparency)
        except VlmEdgeError as error:
            return error.message
        return None

    threads = min(4, usable_cpus())
    with progress.bar(f"reading {dataset.split} images", len(images)) as bar, ThreadPoolExecutor(threads) as pool:
        for image, problem in zip(images, pool.map(problem_of, images), strict=True):
            bar.advance()
            if problem is not None:
                unreadable[image.name] = problem
    write_record(name, {"unreadable": unreadable})
    return unreadable, len(images)


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
