"""A folder of images with ``metadata.jsonl``, as Hugging Face's ``imagefolder`` lays it out.

Each line is an object with ``file_name`` (relative to the folder) and what the task's kind needs: for VQA ``question``
and ``answer`` (one text) or ``answers`` (one text for each annotator); for classification ``label``; for captioning
and retrieval ``caption`` or ``captions``; for hallucination ``question`` and ``answer`` (yes or no). ``slice`` (a text
or a list) is optional, and other keys are left alone. An image may have several lines: several questions, or more
captions, each of which counts once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from vlm_edge.data.dataset import Sample
from vlm_edge.data.kinds import KINDS, LineError, text_of
from vlm_edge.data.manifest import DatasetManifest
from vlm_edge.documents import parse_json, read_text, reason, text_problem
from vlm_edge.errors import RecipeError, VlmEdgeError, short, shown

METADATA_NAME = "metadata.jsonl"
MAX_LINES_BYTES = 2**30
"""Of a file with a JSON object a line."""
_MAX_FAULTS = 20
_MAX_SLICE = 200


def read_image_folder(manifest: DatasetManifest, folder: Path) -> list[Sample]:
    """Samples in the order of the lines.

    Raises:
        VlmEdgeError: ``metadata.jsonl`` is missing, is not UTF-8 or holds no sample.
        RecipeError: the faults of its lines, as ``metadata.jsonl:LINE: ...`` (the first 20, and how many more).
    """
    path = folder / METADATA_NAME
    kind = KINDS[manifest.kind]
    hint = f'put one line an image there: {{"file_name": "1.png", {kind.example}}}'
    labels = dict.fromkeys(manifest.labels)
    samples: list[Sample] = []
    faults: list[str] = []
    for number, line in lines_of(path, hint):
        try:
            row = row_of(line)
            text, answers = kind.read(row, labels)
            image = image_in(folder, row, "file_name")
            samples.append(Sample(f"{row['file_name']}#{number}", image, text, answers, _slices(row)))
        except LineError as error:
            faults.append(f"{path}:{number}: {error}")
    check_faults(faults, f"correct these lines of {METADATA_NAME}, or remove them")
    return _one_an_image(samples) if kind.one_sample_an_image else samples


def lines_of(path: Path, hint: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a text file, without empty lines.

    Raises:
        VlmEdgeError: it can't be read, is no regular file or not UTF-8; ``hint`` is the next step.
    """
    try:
        text = read_text(path, MAX_LINES_BYTES)
    except (OSError, ValueError) as error:
        raise VlmEdgeError(f"{path.parent}: cannot read {path.name}: {reason(error)}", hint) from error
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028, too
        if line.strip():
            yield number, line


def row_of(line: str) -> dict[str, Any]:
    """The JSON object of a line. Raises LineError."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise LineError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise LineError("a line is a JSON object")
    return row


def image_in(folder: Path, row: Mapping[str, Any], key: str) -> Path:
    """The image below ``folder`` that ``row[key]`` names.

    Raises:
        LineError: there is none, or the name leads out of the folder.
    """
    name = text_of(row, key)
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise LineError(f"{key}: {short(name)} leads out of the folder")
    if not os.path.isfile(folder / name):  # noqa: PTH113  (Path.is_file raises for a name that is too long)
        raise LineError(f"{key}: no image {short(name)} in {folder}")
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
    wrong = next((name for name in slices if len(name) > _MAX_SLICE or text_problem(name)), None)
    if wrong is not None:
        raise LineError(f"slice: give at most {_MAX_SLICE} characters without control characters, not {shown(wrong)}")
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
