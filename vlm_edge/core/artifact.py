"""An artifact: a sealed folder, identified by the sha256 of its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vlm_edge.errors import VlmEdgeError


class ArtifactKind(StrEnum):
    """What a folder holds."""

    CHECKPOINT = "checkpoint"  # a Hugging Face model folder: config.json, safetensors, tokenizer, processor
    GRAPHS = "graphs"  # one ONNX file per component and the pipeline manifest
    ENGINE = "engine"  # what the target's engine loads, and the same manifest
    BUNDLE = "bundle"  # an engine with its run record, to copy to a device
    DATA = "data"  # a data set


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


def digest_folder(folder: Path) -> str:
    """Hex sha256 over every file's relative POSIX path and content digest, in sorted order.

    Raises:
        VlmEdgeError: the folder is missing or holds no file.
    """
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    if not files:
        raise VlmEdgeError(f"{folder}: no such folder, or it holds no file")
    total = hashlib.sha256()
    for name, path in files:
        total.update(f"{digest_file(path)}  {name}\n".encode())
    return total.hexdigest()


def folder_size_bytes(folder: Path) -> int:
    """Sum of the sizes of the folder's files, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
