"""docs/support.md: what each family can be put through, tried on its tiny model."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from family_checkpoints import Exported
from photo_folders import write_photos
from rtx import plan
from support_page import WRITE, hold, read_table
from tiny_families import TINY

from vlm_edge.api import run_stage
from vlm_edge.backends import engine_available
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.tasks import tasks_of_kind
from vlm_edge.processing.manifest import read_manifest

SUBJECTS = list(TINY)
TRAINING = {
    "prune": {
        "cross_attention": {"heads": 0.5, "scope": "site"},
        "importance": {"samples": 4},
        "recover": {"epochs": 1, "samples": 4},
    },
    "distill": {"epochs": 0.5, "held_out_images": 0},
}
REFUSALS = {
    "has no cross-attention": "no heads",
    "no student can take the place": "no: more of its tower is read",
    "image tokens are no grid": "no: its tokens are no grid",
    "no loss to train on": "no: it answers nothing",
    "strays from the graph": "no: strays from its graph",
    "can't compile it": "no: can't be compiled",
    "TensorRT would not take it": "no: against its rules",
    "TensorRT-RTX": "no: can't be built",
}


INT8 = ("INT8 on ONNX Runtime", "INT8 on OpenVINO", "INT8 for TensorRT")
UNTRIED = "not tried yet"


def outcome(attempt: Callable[[], object]) -> str:
    """``yes``, or why the model is refused."""
    try:
        attempt()
    except VlmEdgeError as error:
        return next(said for words, said in REFUSALS.items() if words in error.message)
    return "yes"


def test_every_model_has_a_row() -> None:
    assert list(read_table()[1]) == list(TINY)


def test_tasks_and_training(subject: Exported, tmp_path: Path) -> None:
    kinds = tasks_of_kind(subject.family.pipeline)
    data = write_photos(tmp_path, kinds[0], images=12)
    found = {
        stage: outcome(partial(run_stage, stage, config, subject.checkpoint, tmp_path / stage, data=data))
        for stage, config in TRAINING.items()
    }
    answers = subject.manifest.pipeline != "embedding" or subject.manifest.labels
    hold(subject.name, {"tasks": ", ".join(kinds) if answers else "none: it embeds", **found})


@pytest.mark.slow
def test_int8(subject: Exported, tmp_path: Path) -> None:
    """Quantized for each engine; then compiled as a variant without a compile stage is, or built by TensorRT-RTX."""
    if read_table()[1][subject.name][INT8[0]] == UNTRIED and WRITE not in os.environ:
        pytest.skip("the page says that this was not tried yet")
    data = write_photos(tmp_path, tasks_of_kind(subject.family.pipeline)[0], images=12)
    settings = {"components": {"*": "int8"}, "samples": 4}

    def compiled(target: str) -> None:
        quantized, out = tmp_path / target, tmp_path / f"{target}-engine"
        run_stage("quantize", settings, subject.folder, quantized, data=data, target=target)
        run_stage("compile", {"optimize": "runtime"}, quantized, out, target=target)

    def built() -> None:
        quantized = tmp_path / "tensorrt"
        run_stage("quantize", settings, subject.folder, quantized, data=data, target="jetson-orin-tensorrt")
        manifest = read_manifest(quantized)
        for name, component in manifest.components.items():
            plan(quantized / component.file, name, manifest)

    found = {INT8[0]: outcome(partial(compiled, "cpu-ort"))}
    if engine_available("openvino") is None:
        found[INT8[1]] = outcome(partial(compiled, "cpu-openvino"))
    hold(subject.name, found | {INT8[2]: outcome(built)})
