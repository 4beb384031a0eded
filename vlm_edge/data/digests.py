"""The digest of a part of a data set, over its files' digests, which are remembered (:mod:`vlm_edge.digests`)."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vlm_edge.core.artifact import digest_line
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
