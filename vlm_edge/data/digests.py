"""The digest of a part of a data set, remembered between calls.

Hashing thousands of images takes a while, listing them does not: the digest is kept in the user's cache folder beside
a fingerprint of the listing (path, size and modification time of every file, as git's index does), and is taken anew
when the listing differs. A file that is rewritten with the same size and the same time stamp goes unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_edge.core.artifact import digest_line
from vlm_edge.documents import parse_json, read_text, reason
from vlm_edge.errors import VlmEdgeError, short
from vlm_edge.files import write_atomically

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_RECORD_BYTES = 2**26


def content_digest(folder: Path) -> str:
    """Hex sha256 over the lines of ``sha256sum`` for every file below ``folder``, sorted by path.

    Hidden files are left out. A name with a backslash or a line's end is written as sha256sum writes it, so that no
    other files give the same lines.

    Raises:
        VlmEdgeError: the folder is missing or holds no file, or something in it can't be read or is no regular file.
    """
    try:
        listing = sorted(_files(folder, "", frozenset()))
    except OSError as error:
        raise _unreadable(error) from error
    if not listing:
        raise VlmEdgeError(f"{folder}: no such folder, or it holds no file", "check the data manifest's source")
    fingerprint = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    known = read_record(name)
    digest = known.get("digest")
    if known.get("fingerprint") == fingerprint and isinstance(digest, str) and _DIGEST.fullmatch(digest):
        return digest
    try:
        digest = _hash(folder, [name for name, _, _ in listing])
    except OSError as error:
        raise _unreadable(error) from error
    write_record(name, {"fingerprint": fingerprint, "digest": digest})
    return digest


def _unreadable(error: OSError) -> VlmEdgeError:
    return VlmEdgeError(
        f"{short(str(error.filename))}: can't be read: {reason(error)}", "restore this file of the data, or remove it"
    )


def _files(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    """(relative path, size, modification time in ns) of every file below ``folder`` that is not hidden.

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
                yield from _files(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
            elif stat.S_ISREG(status.st_mode):
                yield f"{prefix}{entry.name}", status.st_size, status.st_mtime_ns
            else:
                raise OSError(0, "a pipe, socket or device, no file", entry.path)


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


def read_record(name: str) -> dict[str, Any]:
    """What :func:`write_record` kept under a name; empty where there is nothing that can be read."""
    try:
        record = parse_json(read_text(_cache_folder() / f"{name}.json", _MAX_RECORD_BYTES))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(name: str, record: dict[str, Any]) -> None:
    """Remember what was found out; where the cache folder cannot be written, the next call finds it out again."""
    try:
        write_atomically(_cache_folder() / f"{name}.json", json.dumps(record).encode())
    except VlmEdgeError:
        return
