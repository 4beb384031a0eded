"""A folder of images with ``metadata.jsonl``, as Hugging Face's ``imagefolder`` lays it out.

Each line is an object with ``file_name`` (relative to the folder) and, for VQA, ``question`` and ``answer`` (one text)
or ``answers`` (one text for each annotator); for classification ``label``. ``slice`` (a text or a list) is optional,
and other keys are left alone. An image may have several lines.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from vlm_edge.data.dataset import Sample
from vlm_edge.data.manifest import DatasetManifest
from vlm_edge.errors import RecipeError, VlmEdgeError

METADATA_NAME = "metadata.jsonl"
_MAX_FAULTS = 20


class _LineError(Exception):
    """What is wrong with one line."""


def read_image_folder(manifest: DatasetManifest, folder: Path) -> list[Sample]:
    """Samples in the order of the lines.

    Raises:
        VlmEdgeError: ``metadata.jsonl`` is missing, is not UTF-8 or holds no sample.
        RecipeError: the faults of its lines, as ``metadata.jsonl:LINE: ...`` (the first 20, and how many more).
    """
    path = folder / METADATA_NAME
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would cut at U+2028, too
    except (OSError, UnicodeDecodeError) as error:
        raise VlmEdgeError(
            f"{folder}: cannot read {METADATA_NAME}: {error}",
            'put one line an image there: {"file_name": "1.png", "question": "...", "answer": "..."}',
        ) from error
    samples: list[Sample] = []
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            samples.append(_sample(manifest, folder, number, line))
        except _LineError as error:
            faults.append(f"{path}:{number}: {error}")
    if faults:
        more = [f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else []
        raise RecipeError(faults[:_MAX_FAULTS] + more, f"correct these lines of {METADATA_NAME}, or remove them")
    return samples


def _sample(manifest: DatasetManifest, folder: Path, number: int, line: str) -> Sample:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _LineError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise _LineError("a line is a JSON object")
    name = _text(row, "file_name")
    image = folder / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise _LineError(f"file_name: {name} leads out of the folder")
    if not image.is_file():
        raise _LineError(f"file_name: no image {name} in {folder}")
    question, answers = ("", (_label(manifest, row),)) if manifest.kind == "classification" else _question(row)
    return Sample(f"{name}#{number}", image, question, answers, _slices(row))


def _question(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    question = _text(row, "question")
    if "answer" in row and "answers" in row:
        raise _LineError("give `answer` or `answers`, not both")
    if "answers" not in row:
        return question, (_text(row, "answer"),)
    answers = row["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) and text for text in answers):
        raise _LineError("answers: give a list of texts, one for each annotator")
    return question, tuple(answers)


def _label(manifest: DatasetManifest, row: dict[str, Any]) -> str:
    label = _text(row, "label")
    if label not in manifest.labels:
        shown = ", ".join(manifest.labels[:10]) + (", ..." if len(manifest.labels) > 10 else "")
        raise _LineError(f"label: {label} is not among the manifest's labels: {shown}")
    return label


def _text(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise _LineError(f"no `{key}`; the line has: {', '.join(sorted(row)) or 'nothing'}")
    if not isinstance(row[key], str) or not row[key].strip():
        raise _LineError(f"{key}: give a text that is not empty, not {json.dumps(row[key])}")
    return str(row[key])


def _slices(row: dict[str, Any]) -> tuple[str, ...]:
    value = row.get("slice", [])
    slices = [value] if isinstance(value, str) else value
    if not isinstance(slices, list) or not all(isinstance(name, str) and name for name in slices):
        raise _LineError("slice: give a text or a list of texts")
    return tuple(slices)
