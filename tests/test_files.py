from __future__ import annotations

import ctypes
import errno
import os
import threading
from pathlib import Path

import pytest

from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import alone_in, replace_folder, temporary_name, whole_folder, write_atomically


def test_a_file_is_replaced_whole_and_its_folder_made(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.txt"
    write_atomically(file, b"one")
    write_atomically(file, b"two")
    assert file.read_bytes() == b"two"
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(file.parent.iterdir()) == [file]


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.txt"
    write_atomically(file, b"one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VlmEdgeError, match=r"file\.txt: can't be written: No space left on device"):
        write_atomically(file, b"two")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file.txt", b"one")]


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VlmEdgeError, match="below"):
        write_atomically(tmp_path / "file" / "below", b"")


def test_a_device_is_written_to_and_not_replaced() -> None:
    write_atomically(Path(os.devnull), b"x")
    assert Path(os.devnull).is_char_device()


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 255)
    write_atomically(file, b"x")
    assert file.read_bytes() == b"x"
    with pytest.raises(VlmEdgeError, match="File name too long") as error:
        write_atomically(tmp_path / ("n" * 256), b"x")
    assert "shorter name" in (error.value.hint or "")
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"

    def full() -> None:
        with whole_folder(out) as folder:
            (folder / "half").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=f"No space left on device: '{out}'"):
        full()
    assert list(out.parent.iterdir()) == []
    with whole_folder(out) as folder:
        (folder / "file").write_text("whole")
        assert not out.exists()
    assert (out / "file").read_text() == "whole"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_by_several_at_once_and_is_always_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    sources, bundle = [tmp_path / "a", tmp_path / "b"], tmp_path / "bundle"
    for source in sources:
        source.mkdir()
        for name in ("model", "manifest"):
            (source / name).write_text(source.name)
    replace_folder(sources[0], bundle)
    stop, missing, faults = threading.Event(), 0, []

    def replaced(source: Path) -> None:
        try:
            for _ in range(60):
                replace_folder(source, bundle)
        except OSError as error:
            faults.append(error)

    def watched() -> None:
        nonlocal missing
        while not stop.is_set():
            missing += not bundle.is_dir()

    threads = [threading.Thread(target=replaced, args=(source,)) for source in sources * 2]
    watcher = threading.Thread(target=watched)
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    watcher.join()
    assert faults == []
    assert missing == 0 or not exchange
    assert len({path.read_text() for path in bundle.iterdir()}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "bundle"]


def test_one_at_a_time_in_a_folder_and_what_killed_writes_left_is_removed(tmp_path: Path) -> None:
    for name in ("kept", temporary_name(tmp_path / "x").name):
        (tmp_path / name).write_text("")
    (temporary_name(tmp_path / "bundle") / "sub").mkdir(parents=True)
    with alone_in(tmp_path, None):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "kept"]
        with pytest.raises(BlockingIOError), alone_in(tmp_path, None):
            pass
