"""The digest of a part of a data set, remembered between calls.

Hashing thousands of images takes a while, listing them does not: the digest is kept in the user's cache folder beside
a fingerprint of the listing (path, size and modification time of every file, as git's index does), and is taken anew
when the listing differs. A file that is rewritten with the same size and the same time stamp goes unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vlm_edge.core.artifact import digest_line
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import write_atomically


def content_digest(folder: Path) -> str:
    """Hex sha256 over the lines of ``sha256sum`` for every file below ``folder``, sorted by path.

    Hidden files are left out. Raises:
        VlmEdgeError: the folder is missing or holds no file.
    """
    listing = sorted(_files(folder, ""))
    if not listing:
        raise VlmEdgeError(f"{folder}: no such folder, or it holds no file", "check the data manifest's source")
    fingerprint = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    record = _cache_folder() / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()}.json"
    known = _read_record(record)
    if known.get("fingerprint") == fingerprint:
        return known["digest"]
    digest = _hash(folder, [name for name, _, _ in listing])
    _write_record(record, {"fingerprint": fingerprint, "digest": digest})
    return digest


def _files(folder: Path, prefix: str) -> Iterator[tuple[str, int, int]]:
    """(relative path, size, modification time in ns) of every file below ``folder`` that is not hidden."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                status = entry.stat()
                yield f"{prefix}{entry.name}", status.st_size, status.st_mtime_ns


def _hash(folder: Path, names: list[str]) -> str:
    total = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            total.update(digest_line(hashlib.file_digest(file, "sha256").hexdigest(), name))
    return total.hexdigest()


def _cache_folder() -> Path:
    """Below the user's cache folder; below the temporary files where the user has no home, as in some containers."""
    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:
            base = tempfile.gettempdir()
    return Path(base) / "vlm-edge" / "digests"


def _read_record(path: Path) -> dict[str, str]:
    """The remembered digest, or an empty record where there is none that can be read."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if isinstance(record, dict) and isinstance(record.get("digest"), str):
        return record
    return {}


def _write_record(path: Path, record: dict[str, str]) -> None:
    """Remember a digest; where the cache folder cannot be written, the next call hashes again."""
    try:
        write_atomically(path, json.dumps(record).encode())
    except VlmEdgeError:
        return
