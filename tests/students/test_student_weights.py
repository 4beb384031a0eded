"""Student weights on disk: what is saved is loaded, and what does not belong is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vlm_edge.errors import VlmEdgeError
from vlm_edge.students.weights import StudentRecord, load_student, read_record, save_student, tower_digest

RECORD = StudentRecord("mobilevit-xxs", {"image_height": 32}, 24, "0" * 64)


def tower(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_saved_weights_are_loaded_with_their_record(tmp_path: Path) -> None:
    kept = tower(1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_student(tmp_path / "s", kept, RECORD)
    fresh = tower(2)
    load_student(tmp_path / "s", fresh)
    assert read_record(tmp_path / "s") == RECORD
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in kept.state_dict().items())


def test_a_towers_digest_follows_its_values_and_not_their_layout() -> None:
    first, again, changed = tower(1), tower(1), tower(1)
    again.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert tower_digest(first) == tower_digest(again)
    with torch.no_grad():
        changed[2].bias[0] += 1e-6
    assert tower_digest(first) != tower_digest(changed)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(VlmEdgeError, match=r"student\.json: no readable record"):
        read_record(tmp_path)
    save_student(tmp_path, tower(), RECORD)
    with pytest.raises(VlmEdgeError, match=r"model\.safetensors: no usable student weights"):
        load_student(tmp_path, nn.Linear(2, 2))
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(VlmEdgeError, match=r"model\.safetensors: no usable student weights"):
        load_student(tmp_path, tower())
    (tmp_path / "student.json").write_text('{"student": "mobilevit-xxs"}')
    with pytest.raises(VlmEdgeError, match="no readable record"):
        read_record(tmp_path)
