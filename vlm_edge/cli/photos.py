"""Photos for ``vlm-edge answer``: one, or those of a folder, a pattern, JSON Lines or stdin."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vlm_edge.errors import VlmEdgeError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of a folder's files that are photos."""
MOST_LINE_BYTES = 1 << 20
STDIN = "-"


@dataclass(frozen=True)
class Photo:
    """A photo and the question about it. ``error``: why its line can't be used."""

    path: str
    question: str | None = None
    error: VlmEdgeError | None = None


def names_many(image: str) -> bool:
    """True if ``image`` names any number of photos: a folder, a pattern, JSON Lines or stdin."""
    return image == STDIN or Path(image).is_dir() or image.endswith(".jsonl") or not _is_one(image)


def photos_of(image: str, question: str | None) -> Iterator[Photo]:
    """The photos that ``image`` names; those of stdin as they arrive. A line's own question replaces ``question``.

    Raises:
        VlmEdgeError: there is none, or the file can't be read.
    """
    if image == STDIN:
        yield from _lines(sys.stdin.buffer, STDIN, Path(), question)
    elif Path(image).is_dir():
        found = sorted(path for path in Path(image).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        yield from _listed(found, question, f"{image}: no photo in it ({', '.join(sorted(SUFFIXES))})")
    elif image.endswith(".jsonl"):
        try:
            with open(image, "rb", opener=_at_once) as file:
                yield from _lines(file, image, Path(image).parent, question)
        except OSError as error:
            raise VlmEdgeError(f"{image}: can't be read: {error.strerror}", "check the path") from error
    elif _is_one(image):
        yield Photo(image, question)
    else:
        matches = map(Path, glob.glob(image, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
        found = sorted(path for path in matches if path.is_file())
        yield from _listed(found, question, f"{image}: no file matches")


def _is_one(image: str) -> bool:
    return not glob.has_magic(image) or os.path.lexists(image)


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for a pipe's other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _listed(paths: list[Path], question: str | None, nothing: str) -> Iterator[Photo]:
    if not paths:
        raise VlmEdgeError(nothing, "check the path")
    for path in paths:
        yield Photo(str(path), question)


def _lines(file: BinaryIO, name: str, folder: Path, question: str | None) -> Iterator[Photo]:
    """A path, or ``{"image": PATH, "question": TEXT}``, a line; paths are relative to ``folder``."""
    number = 0
    while line := file.readline(MOST_LINE_BYTES):
        number += 1
        text = line.strip()
        if not text:
            continue
        try:
            row: Any = json.loads(text) if text.startswith(b"{") else {"image": os.fsdecode(text)}
            path, asked = row["image"], row.get("question", question)
            if not isinstance(path, str) or not isinstance(asked, str | None):
                raise TypeError("`image` and `question` are texts")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            reason = "no `image`" if isinstance(error, KeyError) else str(error)
            hint = 'write a path, or {"image": PATH, "question": TEXT}'
            yield Photo(f"{name}:{number}", error=VlmEdgeError(f"{name}:{number}: {reason}", hint))
            continue
        yield Photo(str(folder / path), asked)
