"""The store: finds an artifact by the key of the stage run that makes it, and seals new ones.

Layout::

    objects/DIGEST/            a sealed artifact (read-only files)
    keys/KEY.json              a StageRecord: which artifact a stage run gave
    measurements/KEY.json      a cached measurement
    scratch/KEY/out, state     an unfinished stage run; ``state`` is what it goes on from
    cache/STAGE/               what several runs of a stage share; :meth:`Store.collect` empties it
    locks/KEY                  held while a stage run is under way
    locks/in-use               held, shared, by every run; alone by what removes artifacts

An object is renamed into place whole and its key record is written last, by a rename too, so that a process killed at
any moment leaves nothing that :meth:`Store.find` would take for an artifact.

Stores are copied between machines and restored from caches, so nothing in one is believed before it is checked. A
record carries a checksum and belongs to the one key that its identity hashes to; a digest is 64 hexadecimal digits and
nothing else; an object is plain files and folders with that digest, no links. What fails is taken for absent and made
again. Nothing is removed but what lies in the store's own folders, and no link is followed on the way.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlm_edge.checked import Digest, Timestamp
from vlm_edge.core.artifact import Artifact, ArtifactKind, digest_folder
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import environment_fault, leftovers, remove, write_atomically


class StageRecord(BaseModel):
    """The store's record of one finished stage run; ``key`` is the hash of ``identity``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Digest
    kind: ArtifactKind
    digest: Digest
    identity: dict[str, Any]
    facts: dict[str, Any]
    wall_s: float = Field(ge=0, allow_inf_nan=False)
    created: Timestamp


@dataclass(frozen=True)
class Garbage:
    """The things that :meth:`Store.collect` removed, or would remove. ``temporary`` counts files of killed writes."""

    artifacts: tuple[str, ...]
    measurements: tuple[str, ...]
    scratch: tuple[str, ...]
    temporary: int
    size_bytes: int


def key_of(identity: Any) -> str:
    """Hex sha256 of the canonical JSON (sorted keys, no spaces, UTF-8) of what decides a result."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json_atomically(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one; compressed when it is named ``.gz``."""
    content = (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    write_atomically(path, content)


class Store:
    """A content-addressed store in one folder. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.objects = self.root / "objects"
        self.keys = self.root / "keys"
        self.measurements = self.root / "measurements"
        self.scratch = self.root / "scratch"
        self.cache = self.root / "cache"
        self.locks = self.root / "locks"
        self._verified: dict[str, frozenset[tuple[str, int, int, int]]] = {}
        doing = f"{self.root}: the store can't be written"
        for folder in (self.objects, self.keys, self.measurements, self.scratch, self.cache, self.locks):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                hint = "give another folder with --store"
                fault = environment_fault(error, doing)
                raise VlmEdgeError(fault.message if fault else f"{doing}: {error.strerror}", hint) from error
            if folder.is_symlink():
                raise VlmEdgeError(
                    f"{folder}: a link, and a store's own folders are none: what it leads to could be removed",
                    "remove the link; a store on another disk is given whole with --store",
                )

    def find(self, key: str) -> tuple[Artifact, StageRecord] | None:
        """The artifact of a finished stage run, its content verified against its digest.

        A record whose object is gone or altered is taken for absent, so that the stage runs again.
        """
        record = self._read_record(self.keys / f"{key}.json")
        if record is None or not self._intact(record.digest):
            return None
        return Artifact(record.kind, record.digest, self.objects / record.digest), record

    @contextmanager
    def begin(self, key: str) -> Iterator[tuple[Path, Path]]:
        """Hold the lock of one stage run and give its (out, state) folders: out empty, state as a kill left it."""
        folder = self.scratch / key
        with self._lock(key, wait=True):
            if folder.is_symlink() or any(path.is_symlink() for path in folder.rglob("*")):
                self._remove(folder)  # a run of this program leaves no links
            self._remove(folder / "out")
            (folder / "out").mkdir(parents=True)
            (folder / "state").mkdir(exist_ok=True)
            yield folder / "out", folder / "state"

    def seal(
        self, key: str, kind: ArtifactKind, identity: Mapping[str, Any], facts: Mapping[str, Any], wall_s: float
    ) -> tuple[Artifact, StageRecord]:
        """Turn the stage run's out folder into an artifact: the object first, the key record last."""
        out = self.scratch / key / "out"
        digest = digest_folder(out)
        folder = self.objects / digest
        record = StageRecord(
            key=key,
            kind=kind,
            digest=digest,
            identity=dict(identity),
            facts=dict(facts),
            wall_s=round(wall_s, 3),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        for path in out.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        if not self._intact(digest):
            self._remove(folder)
            out.rename(folder)
            self._verified[digest] = _listing(folder)
        _write_checked(self.keys / f"{key}.json", record.model_dump(mode="json"))
        self._remove(self.scratch / key)
        return Artifact(kind, digest, folder), record

    def measurement(self, key: str) -> dict[str, Any] | None:
        """A cached measurement, or None. One that was altered, or was written for another key, is taken for absent."""
        kept = _read_checked(self.measurements / f"{key}.json")
        return kept if kept is not None and _is_key_of(key, kept.get("identity")) else None

    def keep_measurement(self, identity: Mapping[str, Any], value: Any) -> None:
        """Cache a measurement under the key of its identity, whose ``artifacts`` are the digests that it is of."""
        _write_checked(self.measurements / f"{key_of(identity)}.json", {"identity": dict(identity), "value": value})

    def shared(self, stage: str) -> Path:
        """The folder of a stage for what several of its runs can use."""
        folder = self.cache / stage
        if folder.is_symlink():
            self._remove(folder)
        return folder

    def records(self) -> list[StageRecord]:
        """Every finished stage run, oldest first."""
        found = (self._read_record(path) for path in sorted(self.keys.glob("*.json")))
        return sorted((record for record in found if record is not None), key=lambda record: record.created)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep :meth:`collect` away while a run is under way, whose artifacts no record names yet."""
        with self._open_lock("in-use") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def collect(self, referenced: set[str], *, dry_run: bool) -> Garbage:
        """Remove artifacts that no digest in ``referenced`` names, their records, and what killed runs left behind.

        Args:
            referenced: digests that stay (those that a run record names).
            dry_run: report what would go, and remove nothing.

        Raises:
            VlmEdgeError: a run is using the store.
        """
        with self._open_lock("in-use") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise VlmEdgeError(f"{self.root}: a run is using this store", "wait until it has ended") from error
            return self._collect(referenced, dry_run)

    def _collect(self, referenced: set[str], dry_run: bool) -> Garbage:
        artifacts = [path for path in sorted(self.objects.iterdir()) if path.name not in referenced]
        scratch = [path for path in sorted(self.scratch.iterdir()) if not self._locked(path.name)]
        temporary = [*leftovers(self.keys), *leftovers(self.measurements)]
        gone = {path.name for path in artifacts}
        measurements = [path for path in sorted(self.measurements.glob("*.json")) if gone & self._measured(path.stem)]
        removed = [*artifacts, *scratch, *temporary, *measurements, *sorted(self.cache.iterdir())]
        size = sum(_size_bytes(path) for path in removed)
        if not dry_run:
            removed[:0] = [self.keys / f"{record.key}.json" for record in self.records() if record.digest in gone]
            for path in removed:
                self._remove(path)
        names = tuple(tuple(path.stem for path in paths) for paths in (artifacts, measurements, scratch))
        return Garbage(names[0], names[1], names[2], len(temporary), size)

    def _measured(self, key: str) -> set[str]:
        """Digests of the artifacts that a cached measurement is of."""
        artifacts = (self.measurement(key) or {}).get("identity", {}).get("artifacts", ())
        return {each for each in artifacts if isinstance(each, str)} if isinstance(artifacts, list) else set()

    def _read_record(self, path: Path) -> StageRecord | None:
        try:
            record = StageRecord.model_validate(_read_checked(path))
        except ValidationError:
            return None
        return record if record.key == path.stem and _is_key_of(record.key, record.identity) else None

    def _intact(self, digest: str) -> bool:
        """True if an object's content has its digest.

        It is hashed once by each Store, and again only if a name, size, inode or time of it has changed since.
        """
        folder = self.objects / digest
        try:
            listing = _listing(folder)
            if self._verified.get(digest) != listing:
                if not listing or digest_folder(folder) != digest:
                    return False
                self._verified[digest] = listing
        except (OSError, VlmEdgeError):  # missing, emptied, or not to be read
            return False
        return True

    def _remove(self, path: Path) -> None:
        """Remove a file, a link or a folder with all in it, which may be read-only; gone already is fine.

        Raises:
            VlmEdgeError: it is not within the store.
        """
        if self.root.resolve() not in (path.parent.resolve(), *path.parent.resolve().parents) or path.name in (
            "",
            "..",
        ):
            raise VlmEdgeError(f"{path}: outside of the store {self.root}, and left alone")
        remove(path)

    def _open_lock(self, name: str) -> IO[bytes]:
        """A lock's file, made where it is missing; never what a link leads to."""
        return os.fdopen(os.open(self.locks / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "rb")

    @contextmanager
    def _lock(self, key: str, *, wait: bool) -> Iterator[None]:
        with self._open_lock(key) as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield

    def _locked(self, key: str) -> bool:
        try:
            with self._lock(key, wait=False):
                return False
        except BlockingIOError:
            return True


def _listing(folder: Path) -> frozenset[tuple[str, int, int, int]]:
    """(relative path, size, modification time in ns, inode) of every file; empty where anything else is among them."""
    rows = set()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)  # noqa: PTH118  (a Path for every file is slow)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                rows.add((path, status.st_size, status.st_mtime_ns, status.st_ino))
            elif not stat.S_ISDIR(status.st_mode):
                return frozenset()
    return frozenset(rows) if not folder.is_symlink() else frozenset()


def _size_bytes(path: Path) -> int:
    """Of a file, a link itself, or all files of a folder."""
    below = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(status.st_size for each in below if not stat.S_ISDIR((status := each.lstat()).st_mode))


def _write_checked(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object beside the checksum of what a reader will get."""
    read = json.loads(json.dumps(content, allow_nan=False))
    write_json_atomically(path, {"sha256": key_of(read), "content": read})


def _read_checked(path: Path) -> dict[str, Any] | None:
    """The JSON object that :func:`_write_checked` wrote; None where there is none, or any of it was altered."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        kept = json.loads(path.read_bytes())
        content = kept["content"]
        return content if isinstance(content, dict) and _is_key_of(kept["sha256"], content) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _is_key_of(key: Any, identity: Any) -> bool:
    try:
        return bool(key_of(identity) == key)
    except (ValueError, RecursionError):  # not finite, a lone surrogate, nested without end
        return False
