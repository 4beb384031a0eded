"""Output files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vlm_edge.errors import VlmEdgeError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the whole of the new.

    The folder is made where it is missing.

    Raises:
        VlmEdgeError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise VlmEdgeError(f"{path}: can't be written: {error.strerror}", "give another place for this file") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise VlmEdgeError(f"{path}: can't be written: {error.strerror}") from error
        raise
