"""docs/support.md: what each family can be put through, tried on its tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from family_checkpoints import Exported
from photo_folders import write_photos
from support_page import hold, read_table
from tiny_families import TINY

from vlm_edge.api import run_stage
from vlm_edge.errors import VlmEdgeError

SUBJECTS = list(TINY)
TRAINING = {
    "prune": {
        "cross_attention": {"heads": 0.5, "scope": "site"},
        "importance": {"samples": 4},
        "recover": {"epochs": 1, "samples": 4},
    },
    "distill": {"epochs": 0.5, "held_out_images": 0},
}
REFUSALS = {"has no cross-attention": "no heads", "not trained": "no training yet"}


def outcome(stage: str, config: dict[str, Any], subject: Exported, data: Path, out: Path) -> str:
    """``yes``, or why the stage refuses the model."""
    try:
        run_stage(stage, config, subject.checkpoint, out, data=data)
    except VlmEdgeError as error:
        return next(said for words, said in REFUSALS.items() if words in error.message)
    return "yes"


def test_every_model_has_a_row() -> None:
    assert list(read_table()[1]) == list(TINY)


def test_tasks_and_training(subject: Exported, tmp_path: Path) -> None:
    kinds = subject.family.task_kinds
    data = write_photos(tmp_path, kinds[0], images=12)
    found = {stage: outcome(stage, config, subject, data, tmp_path / stage) for stage, config in TRAINING.items()}
    answers = subject.manifest.pipeline != "embedding" or subject.manifest.labels
    hold(subject.name, {"tasks": ", ".join(kinds) if answers else "none: it embeds", **found})
