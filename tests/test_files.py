from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import write_atomically


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
