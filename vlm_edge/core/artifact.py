"""An artifact: a sealed folder, identified by the sha256 of its content."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vlm_edge.errors import VlmEdgeError


class ArtifactKind(StrEnum):
    """The kind of content of a folder."""

    CHECKPOINT = "checkpoint"  # a Hugging Face model folder: config.json, safetensors, tokenizer, processor
    GRAPHS = "graphs"  # one ONNX file per component and the pipeline manifest
    ENGINE = "engine"  # what the target's engine loads, and the same manifest


@dataclass(frozen=True)
class Artifact:
    """One sealed folder. ``digest`` is :func:`digest_folder` of ``path``."""

    kind: ArtifactKind
    digest: str
    path: Path


def digest_file(path: Path) -> str:
    """Hex sha256 of one file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# A model card or a training log says something about a checkpoint, and is no part of it.
NOT_CONTENT = frozenset({".md", ".jsonl", ".gitattributes"})


def digest_folder(folder: Path, ignore: frozenset[str] = frozenset()) -> str:
    """Hex sha256 over the lines of ``sha256sum`` for every file, by its relative POSIX path, in sorted order.

    The folder's own name is no part of it, nor are files whose suffix or name is in ``ignore``.

    Raises:
        VlmEdgeError: the folder is missing or holds no file.
    """
    paths = (path for path in folder.rglob("*") if path.suffix not in ignore and path.name not in ignore)
    files = sorted((path.relative_to(folder).as_posix(), path) for path in paths if path.is_file())
    if not files:
        raise VlmEdgeError(f"{folder}: no such folder, or it holds no file")
    total = hashlib.sha256()
    for name, path in files:
        total.update(digest_line(digest_file(path), name))
    return total.hexdigest()


def digest_line(digest: str, name: str) -> bytes:
    """The line that ``sha256sum`` prints for a file: a name that would break it is escaped, so none forges another."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return os.fsencode(f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n")


def checkpoint_artifact(folder: Path) -> Artifact:
    """A checkpoint folder as an artifact; its model card and logs don't count."""
    return Artifact(ArtifactKind.CHECKPOINT, digest_folder(folder, NOT_CONTENT), folder)


def folder_size_bytes(folder: Path) -> int:
    """Sum of the sizes of the folder's files, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
