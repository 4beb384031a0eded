"""Remembered digests: a file is hashed once, and again whenever it may have changed; no record is believed blindly."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from vlm_edge.digests import file_digests
from vlm_edge.errors import VlmEdgeError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vlm_edge.digests.RECENT_NS", -1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"one")
    return tmp_path / "cache" / "vlm-edge" / "digests"


def digest(folder: Path) -> str:
    return file_digests(folder, ["a"])["a"]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("cache")
def test_an_unchanged_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest(tmp_path / "data") == sha256(b"one")
    monkeypatch.setattr("vlm_edge.digests.hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
    assert digest(tmp_path / "data") == sha256(b"one")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("way", ["rewritten", "replaced", "in place"])
def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path, way: str) -> None:
    path = tmp_path / "data" / "a"
    digest(tmp_path / "data")
    before = path.stat()
    if way == "replaced":
        (tmp_path / "b").write_bytes(b"two")
        (tmp_path / "b").replace(path)
    elif way == "in place":
        with path.open("r+b") as file:
            file.write(b"two")
    else:
        path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest(tmp_path / "data") == sha256(b"two")


def test_a_file_that_just_changed_is_not_remembered(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_edge.digests.RECENT_NS", 3_600_000_000_000)
    digest(tmp_path / "data")
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("how", ["open folder", "open record", "a link", "no JSON", "deep", "[]"])
def test_a_record_that_others_could_have_written_is_not_believed(cache: Path, tmp_path: Path, how: str) -> None:
    digest(tmp_path / "data")
    (record,) = cache.iterdir()
    forged = json.loads(record.read_text())
    forged["files"]["a"][1] = "f" * 64
    record.write_text(json.dumps(forged))
    assert digest(tmp_path / "data") == "f" * 64  # the user's own is believed: who can write it can run as the user
    if how == "open folder":
        cache.chmod(0o777)
    elif how == "open record":
        record.chmod(0o666)
    elif how == "a link":
        record.rename(tmp_path / "elsewhere")
        record.symlink_to(tmp_path / "elsewhere")
    else:
        record.write_text({"no JSON": "{", "deep": "[" * 100_000, "[]": "[]"}[how])
    assert digest(tmp_path / "data") == sha256(b"one")
    assert digest(tmp_path / "data") == sha256(b"one")


@pytest.mark.usefixtures("cache")
def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").unlink()
    with pytest.raises(VlmEdgeError, match=r"data/a: can't be read"):
        digest(tmp_path / "data")
    os.mkfifo(tmp_path / "data" / "a")
    with pytest.raises(VlmEdgeError, match="can't be read"):
        digest(tmp_path / "data")
