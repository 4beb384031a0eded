"""SHA-256 of files, remembered between calls.

Hashing a model or thousands of images takes a while, and a device opens the same bundle every morning. So a file's
digest is kept in the user's cache folder with its status (device, inode, size, times of modification and of change of
status), as git's index does, and is taken anew when any of them differs. The time of change is set by the kernel alone:
``touch -d`` or ``rsync -t`` can't give a file that was rewritten its old one.

A record can vouch for no file that the user did not hash:

- a file that changed within the last two seconds is not remembered, since its next change could carry the same time;
- a file whose status differs after hashing is not remembered;
- the cache folder and its records have to belong to the user, and others must not be able to write them.

A block that rots on the disk changes no status: remove the cache folder to have everything hashed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import write_atomically

RECENT_NS = 2_000_000_000
"""The coarsest time stamps of a file system that is in use (FAT)."""
_VERSION = 2
_DIGEST = re.compile("[0-9a-f]{64}")
_MOST_RECORD_BYTES = 1 << 26

Status = list[int]


def file_digests(folder: Path, names: Iterable[str], hint: str = "copy the whole folder again") -> dict[str, str]:
    """Hex sha256 of the content of each of a folder's files, by its name.

    Args:
        folder: the folder.
        names: paths relative to it.
        hint: the next step where a file can't be read.

    Raises:
        VlmEdgeError: a file is missing, no regular file, or can't be read.
    """
    record = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    known = _known_files(record)
    found: dict[str, str] = {}
    kept: dict[str, Any] = {}
    for name in names:
        remembered = known.get(name)
        try:
            status, digest = _digest(folder / name, remembered)
        except OSError as error:
            raise VlmEdgeError(f"{folder / name}: can't be read: {error.strerror}", hint) from error
        found[name] = digest
        if status is not None:
            kept[name] = [status, digest]
    if kept != known:
        write_record(record, {"version": _VERSION, "files": kept})
    return found


def _digest(path: Path, remembered: Any) -> tuple[Status | None, str]:
    """A file's status, if it may be remembered, and its digest."""
    before = path.stat()
    if not stat.S_ISREG(before.st_mode):
        raise OSError(0, "no regular file")
    if remembered and remembered[0] == _status(before):
        return remembered[0], remembered[1]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    settled = time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > RECENT_NS
    status = _status(after)
    return (status if settled and status == _status(before) else None), digest


def _status(found: os.stat_result) -> Status:
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _known_files(name: str) -> dict[str, Any]:
    """Remembered status and digest of a folder's files, by name."""
    record = read_record(name)
    files = record.get("files")
    if record.get("version") != _VERSION or not isinstance(files, dict):
        return {}
    return {
        name: row
        for name, row in files.items()
        if isinstance(row, list) and len(row) == 2 and isinstance(row[1], str) and _DIGEST.fullmatch(row[1])
    }


def cache_folder(name: str) -> Path:
    """``vlm-edge/NAME`` in the user's cache folder, or in the temporary files where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:
            base = tempfile.gettempdir()
    return Path(base) / "vlm-edge" / name


def own_cache(name: str) -> Path | None:
    """A :func:`cache_folder` that nobody else can write, made where it is missing; None where there is none."""
    folder = cache_folder(name)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _own(os.lstat(folder)) else None
    except OSError:
        return None


def _own(found: os.stat_result) -> bool:
    """Whether nobody but this user (or root) can have written it."""
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def read_record(name: str) -> dict[str, Any]:
    """The mapping that :func:`write_record` kept under a name; empty where nothing can be read and trusted."""
    folder = own_cache("digests")
    if folder is None:
        return {}
    try:
        handle = os.open(
            folder / f"{name}.json", os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        )
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not _own(status) or status.st_size > _MOST_RECORD_BYTES:
                return {}
            record = json.loads(file.read(_MOST_RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(name: str, record: dict[str, Any]) -> None:
    """Remember what was found out; where the cache folder can't be written, the next call finds it out again."""
    folder = own_cache("digests")
    if folder is not None:
        with suppress(OSError, VlmEdgeError):
            write_atomically(folder / f"{name}.json", json.dumps(record).encode())
