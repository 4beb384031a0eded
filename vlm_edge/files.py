"""Output files that appear whole or not at all, and faults of the file system in words."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from vlm_edge.errors import VlmEdgeError

_PREFIX, _SUFFIX = ".vlm-edge-", ".tmp"
"""Of every name that is only there until a write has ended; the name of the file itself may be as long as it likes."""

_SPACE = "free some space, or give a place on another disk (--store, --runs, TMPDIR)"
_RIGHTS = "give yourself the right to it, or another place (--store, --runs, -o)"
_HINTS: dict[int, tuple[str | None, str]] = {
    errno.ENOSPC: (None, _SPACE),
    errno.EDQUOT: (None, _SPACE),
    errno.EFBIG: (None, "raise the limit (`ulimit -f`), or give a place on a file system that holds larger files"),
    errno.EROFS: (None, _RIGHTS),
    errno.EACCES: (None, _RIGHTS),
    errno.EPERM: (None, _RIGHTS),
    errno.ENAMETOOLONG: (None, "give a shorter name: most file systems hold 255 bytes"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "give another place"),
    errno.EEXIST: ("a file is where a folder has to be", "give another place, or move that file away"),
    errno.EISDIR: ("a folder is where a file has to be", "give the name of a file"),
    errno.ELOOP: ("links that lead to one another", "mend the links, or give another place"),
    errno.EMFILE: (None, "raise the limit (`ulimit -n`)"),
    errno.ENFILE: (None, "close what else is running"),
    errno.EIO: (None, "the disk or its connection fails: look into the system's log"),
    errno.ESTALE: (None, "the network folder was replaced on its server: mount it again"),
}


def environment_fault(error: OSError, doing: str | None = None) -> VlmEdgeError | None:
    """The fault of a disk, a folder or a name as an error for the user; None for any other.

    Args:
        error: what the system said.
        doing: the start of the message; default: the file that the error names.
    """
    if error.errno not in _HINTS:
        return None
    words, hint = _HINTS[error.errno]
    named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    place = doing or named
    reason = words or error.strerror or os.strerror(error.errno)
    if doing and named and words and not doing.startswith(named):
        reason = f"{named}: {reason}"
    return VlmEdgeError(f"{place}: {reason}" if place else reason, hint)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Name the folder in errors of writes that name no file: of a full disk, the system says no more than that."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(folder)
        raise


def temporary_name(beside: Path) -> Path:
    """A new name beside a file or folder, for what is renamed to it when it is whole."""
    return beside.with_name(f"{_PREFIX}{os.urandom(8).hex()}{_SUFFIX}")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes ``out``, new or empty, at the end; after an exception nothing is there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(out)
    try:
        with writing_to(out):
            temporary.mkdir()
            yield temporary
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(source: Path, destination: Path) -> None:
    """Copy a folder to ``destination``, which is the old one or the new one at any moment, whole.

    Several processes may do it at once. Only where the file system can't exchange two names (``renameat2``), there is
    nothing between two renames.
    """
    fresh = temporary_name(destination)
    try:
        with writing_to(destination):
            shutil.copytree(source, fresh, copy_function=shutil.copyfile)
            while not _put(fresh, destination):
                pass
    finally:
        remove(fresh)


def _put(fresh: Path, destination: Path) -> bool:
    """Give ``fresh`` the name of ``destination`` and what was there the name of ``fresh``; False to try again."""
    try:
        fresh.rename(destination)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
    else:
        return True
    names = (os.fsencode(fresh), os.fsencode(destination))
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if exchange is not None and exchange(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0:
        return True
    if exchange is None or ctypes.get_errno() != errno.ENOENT:
        aside = temporary_name(destination)
        with suppress(FileNotFoundError):  # another process was faster
            destination.rename(aside)
        remove(aside)
    return False


_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it; gone already is fine, and no link is followed."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


@contextmanager
def alone_in(folder: Path, waiting: Callable[[], AbstractContextManager[object]] | None) -> Iterator[None]:
    """Hold a folder's lock, and remove from it what killed writes left.

    Args:
        folder: made where it is missing.
        waiting: entered while another process holds the lock; None: don't wait.

    Raises:
        BlockingIOError: another process holds it, and there was no waiting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise
            with waiting():
                fcntl.flock(file, fcntl.LOCK_EX)
        for path in leftovers(folder):
            remove(path)
        yield


def leftovers(folder: Path) -> Iterator[Path]:
    """Temporary files that killed writes left directly in a folder."""
    yield from sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the whole of the new.

    The folder is made where it is missing.

    Raises:
        VlmEdgeError: it can't be written.
    """
    temporary: Path | None = None
    try:
        if path.is_char_device() or path.is_fifo():  # /dev/stdout: there is nothing to replace
            path.write_bytes(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX, suffix=_SUFFIX)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            doing = f"{path}: can't be written"
            hint = "give another place for this file"
            raise environment_fault(error, doing) or VlmEdgeError(f"{doing}: {error.strerror}", hint) from error
        raise
