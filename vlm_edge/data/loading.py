"""A manifest's split as samples, and the digest that stands for it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vlm_edge.core.artifact import digest_line
from vlm_edge.data.dataset import Dataset, Sample, Split
from vlm_edge.data.manifest import DatasetManifest, SplitSpec, read_dataset_manifest
from vlm_edge.data.sampling import draw_stratified, draw_whole_images
from vlm_edge.data.sources import OpenSource, open_source
from vlm_edge.digests import file_digests
from vlm_edge.documents import reason
from vlm_edge.errors import VlmEdgeError, short

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
