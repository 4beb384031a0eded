"""A checkpoint that a test may break, and the error that loading it then gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import load_checkpoint


@pytest.fixture
def blip(tiny_blip: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny_blip, tmp_path / "checkpoint"))


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def refusal(folder: Path) -> VlmEdgeError:
    with pytest.raises(VlmEdgeError) as caught:
        load_checkpoint(folder)
    assert caught.value.hint
    return caught.value
