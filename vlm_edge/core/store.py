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
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vlm_edge.core.artifact import Artifact, ArtifactKind, digest_folder, folder_size_bytes
from vlm_edge.core.files import write_atomically
from vlm_edge.errors import VlmEdgeError


class StageRecord(BaseModel):
    """What the store knows of one finished stage run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    kind: ArtifactKind
    digest: str
    identity: dict[str, Any]
    facts: dict[str, Any]
    wall_s: float
    created: str


@dataclass(frozen=True)
class Garbage:
    """What :meth:`Store.collect` removed, or would remove."""

    artifacts: tuple[str, ...]
    measurements: tuple[str, ...]
    scratch: tuple[str, ...]
    size_bytes: int


def key_of(identity: Mapping[str, Any]) -> str:
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
        try:
            for folder in (self.objects, self.keys, self.measurements, self.scratch, self.root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VlmEdgeError(
                f"{self.root}: the store can't be written: {error.strerror}", "give another folder with --store"
            ) from error

    def find(self, key: str) -> tuple[Artifact, StageRecord] | None:
        """The artifact of a finished stage run, its content verified against its digest.

        A record whose object is gone or altered is taken for absent, so that the stage runs again.
        """
        record = self._read_record(self.keys / f"{key}.json")
        if record is None:
            return None
        folder = self.objects / record.digest
        if not _intact(folder, record.digest):
            (self.keys / f"{key}.json").unlink(missing_ok=True)
            if folder.is_dir():
                _remove(folder)
            return None
        return Artifact(record.kind, record.digest, folder), record

    @contextmanager
    def begin(self, key: str) -> Iterator[tuple[Path, Path]]:
        """Hold the lock of one stage run and give its (out, state) folders: out empty, state as a kill left it."""
        with self._lock(key):
            out, state = self.scratch / key / "out", self.scratch / key / "state"
            if out.exists():
                _remove(out)
            out.mkdir(parents=True)
            state.mkdir(exist_ok=True)
            yield out, state

    def seal(
        self, key: str, kind: ArtifactKind, identity: Mapping[str, Any], facts: Mapping[str, Any], wall_s: float
    ) -> tuple[Artifact, StageRecord]:
        """Turn the stage run's out folder into an artifact: the object first, the key record last."""
        out = self.scratch / key / "out"
        digest = digest_folder(out)
        folder = self.objects / digest
        for path in out.rglob("*"):
            if path.is_file():
                _sync(path)
                path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        if _intact(folder, digest):
            _remove(out)
        else:
            if folder.exists():
                _remove(folder)
            out.rename(folder)
        record = StageRecord(
            key=key,
            kind=kind,
            digest=digest,
            identity=dict(identity),
            facts=dict(facts),
            wall_s=round(wall_s, 3),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_json_atomically(self.keys / f"{key}.json", record.model_dump(mode="json"))
        _remove(self.scratch / key)
        return Artifact(kind, digest, folder), record

    def measurement(self, key: str) -> Any | None:
        """A cached measurement, or None. A file that is not JSON is taken for absent."""
        try:
            return json.loads((self.measurements / f"{key}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def keep_measurement(self, key: str, value: Any) -> None:
        write_json_atomically(self.measurements / f"{key}.json", value)

    def records(self) -> list[StageRecord]:
        """Every finished stage run, oldest first."""
        found = (self._read_record(path) for path in sorted(self.keys.glob("*.json")))
        return sorted((record for record in found if record is not None), key=lambda record: record.created)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep :meth:`collect` away while a run is under way, whose artifacts no record names yet."""
        with (self.root / "locks" / "in-use").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def collect(self, referenced: set[str], *, dry_run: bool) -> Garbage:
        """Remove artifacts that no digest in ``referenced`` names, their records and idle scratch folders.

        Args:
            referenced: digests that stay (those that a run record names).
            dry_run: report what would go, and remove nothing.

        Raises:
            VlmEdgeError: a run is using the store.
        """
        with (self.root / "locks" / "in-use").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise VlmEdgeError(f"{self.root}: a run is using this store", "wait until it has ended") from error
            return self._collect(referenced, dry_run)

    def _collect(self, referenced: set[str], dry_run: bool) -> Garbage:
        artifacts = [path for path in sorted(self.objects.iterdir()) if path.name not in referenced]
        scratch = [path for path in sorted(self.scratch.iterdir()) if not self._locked(path.name)]
        gone = {path.name for path in artifacts}
        measurements = [
            path
            for path in sorted(self.measurements.glob("*.json"))
            if gone & set((self.measurement(path.stem) or {}).get("artifacts", ()))
        ]
        size = sum(folder_size_bytes(path) for path in [*artifacts, *scratch])
        size += sum(path.stat().st_size for path in measurements)
        size += folder_size_bytes(self.cache)
        if not dry_run:
            for record in self.records():
                if record.digest in gone:
                    (self.keys / f"{record.key}.json").unlink(missing_ok=True)
            for path in [*artifacts, *scratch, self.cache]:
                _remove(path)
            for path in measurements:
                path.unlink(missing_ok=True)
        names = tuple(tuple(path.stem for path in paths) for paths in (artifacts, measurements, scratch))
        return Garbage(names[0], names[1], names[2], size)

    def _read_record(self, path: Path) -> StageRecord | None:
        try:
            return StageRecord.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        with (self.root / "locks" / key).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _locked(self, key: str) -> bool:
        with (self.root / "locks" / key).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


def _intact(folder: Path, digest: str) -> bool:
    """Whether the folder is there and holds what its digest says."""
    try:
        return digest_folder(folder) == digest
    except VlmEdgeError:  # missing, or emptied
        return False


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    """Remove a folder of which files may be read-only; gone already is fine."""
    shutil.rmtree(folder, ignore_errors=not folder.exists())
