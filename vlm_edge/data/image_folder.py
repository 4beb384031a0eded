"""A folder of images with ``metadata.jsonl``, as Hugging Face's ``imagefolder`` lays it out.

Each line is an object with ``file_name`` (relative to the folder) and what the task's kind needs: for VQA ``question``
and ``answer`` (one text) or ``answers`` (one text for each annotator); for classification ``label``; for captioning
and retrieval ``caption`` or ``captions``; for hallucination ``question`` and ``answer`` (yes or no). ``slice`` (a text
or a list) is optional, and other keys are left alone. An image may have several lines: several questions, or more
captions, each of which counts once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from vlm_edge.data.dataset import Sample
from vlm_edge.data.kinds import KINDS, LineError, text_of
from vlm_edge.data.manifest import DatasetManifest
from vlm_edge.errors import RecipeError, VlmEdgeError

METADATA_NAME = "metadata.jsonl"
_MAX_FAULTS = 20


def read_image_folder(manifest: DatasetManifest, folder: Path) -> list[Sample]:
    """Samples in the order of the lines.

    Raises:
        VlmEdgeError: ``metadata.jsonl`` is missing, is not UTF-8 or holds no sample.
        RecipeError: the faults of its lines, as ``metadata.jsonl:LINE: ...`` (the first 20, and how many more).
    """
    path = folder / METADATA_NAME
    kind = KINDS[manifest.kind]
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would cut at U+2028, too
    except (OSError, UnicodeDecodeError) as error:
        raise VlmEdgeError(
            f"{folder}: cannot read {METADATA_NAME}: {error}",
            f'put one line an image there: {{"file_name": "1.png", {kind.example}}}',
        ) from error
    samples: list[Sample] = []
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            samples.append(_sample(manifest, folder, number, line))
        except LineError as error:
            faults.append(f"{path}:{number}: {error}")
    check_faults(faults, f"correct these lines of {METADATA_NAME}, or remove them")
    return _one_an_image(samples) if kind.one_sample_an_image else samples


def _sample(manifest: DatasetManifest, folder: Path, number: int, line: str) -> Sample:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise LineError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise LineError("a line is a JSON object")
    image = image_in(folder, row, "file_name")
    text, answers = KINDS[manifest.kind].read(row, manifest.labels)
    return Sample(f"{row['file_name']}#{number}", image, text, answers, _slices(row))


def image_in(folder: Path, row: Mapping[str, Any], key: str) -> Path:
    """The image below ``folder`` that ``row[key]`` names.

    Raises:
        LineError: there is none, or the name leads out of the folder.
    """
    name = text_of(row, key)
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise LineError(f"{key}: {name} leads out of the folder")
    if not (folder / name).is_file():
        raise LineError(f"{key}: no image {name} in {folder}")
    return folder / name


def check_faults(faults: Sequence[str], hint: str) -> None:
    """Report what is wrong with a file's entries, the first twenty and how many more.

    Raises:
        RecipeError: there is a fault.
    """
    if faults:
        more = [f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else []
        raise RecipeError([*faults[:_MAX_FAULTS], *more], hint)


def _slices(row: dict[str, Any]) -> tuple[str, ...]:
    value = row.get("slice", [])
    slices = [value] if isinstance(value, str) else value
    if not isinstance(slices, list) or not all(isinstance(name, str) and name for name in slices):
        raise LineError("slice: give a text or a list of texts")
    return tuple(slices)


def _one_an_image(samples: list[Sample]) -> list[Sample]:
    """Each image's first sample, with the answers and the slices of all of them, each once."""
    merged: dict[Path, Sample] = {}
    for sample in samples:
        first = merged.setdefault(sample.image, sample)
        merged[sample.image] = replace(
            first,
            answers=tuple(dict.fromkeys((*first.answers, *sample.answers))),
            slices=tuple(dict.fromkeys((*first.slices, *sample.slices))),
        )
    return list(merged.values())
