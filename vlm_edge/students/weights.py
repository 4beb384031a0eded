"""Student weights that come with the package: made by the distill stage, and only for the tower they learned from.

A folder holds ``model.safetensors`` (the student's state, float32) and ``student.json``: the student's name, its
config, the teacher's hidden size, and the digest of the teacher's vision tower.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlm_edge.errors import VlmEdgeError

RECORD_NAME = "student.json"
WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True)
class StudentRecord:
    """``student.json``: the student that the weights fit, and the :func:`tower_digest` of the teacher's tower."""

    student: str
    config: dict[str, Any]
    hidden: int
    teacher: str


def tower_digest(tower: nn.Module) -> str:
    """Hex sha256 over the names, shapes and float32 bytes of a vision tower's state, in sorted order."""
    total = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return total.hexdigest()


def save_student(folder: Path, student: nn.Module, record: StudentRecord) -> None:
    """Write a folder that :func:`read_student` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.state_dict().items()}
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    text = json.dumps(asdict(record), indent=1, sort_keys=True)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> StudentRecord:
    """``student.json``.

    Raises:
        VlmEdgeError: it is missing or not what :func:`save_student` writes.
    """
    try:
        return StudentRecord(**json.loads((folder / RECORD_NAME).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise VlmEdgeError(f"{folder / RECORD_NAME}: no readable record of student weights: {error}") from error


def load_student(folder: Path, student: nn.Module) -> None:
    """Load the folder's weights into ``student``, strictly.

    Raises:
        VlmEdgeError: the file is missing, corrupt, or of another shape.
    """
    path = folder / WEIGHTS_NAME
    try:
        state: dict[str, Tensor] = load_file(path)
        student.load_state_dict(state, strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise VlmEdgeError(f"{path}: no usable student weights: {reason}", "install vlm-edge again") from error
