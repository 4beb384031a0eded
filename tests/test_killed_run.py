"""A real run killed with SIGKILL, again and again, ends with the artifacts of a run that nobody disturbed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
name: killed
model: zoo:blip-easyvqa
task: {kind: vqa, data: calibration/easy-vqa.yaml}
target: cpu-ort
stages:
  - quantize: {components: {"*": int8}, samples: 64}
  - prune: {cross_attention: {heads: 0.5}, recover: {epochs: 1, samples: 400}}
  - compile: {}
"""
KILL_AT = (0, 1, 2, 4, 5)
"""Artifacts in the store when a run is killed."""


def start(folder: Path, recipe: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vlm_edge.cli", "-q", "--store", folder / "store", "--runs", folder / "runs"]
    return subprocess.Popen([*command, "run", recipe], cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)


def artifacts(folder: Path) -> dict[str, dict[str, str]]:
    record = json.loads((folder / "runs" / "killed" / "run.json").read_bytes())
    return {variant["name"]: variant["artifacts"] for variant in record["variants"]}


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_artifacts(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa", reason="the data set is the package easy-vqa")
    recipe = tmp_path / "killed.yaml"
    recipe.write_text(RECIPE)
    kills = 0
    for count in KILL_AT:
        process = start(tmp_path / "killed", recipe)
        while process.poll() is None and len(list((tmp_path / "killed/store/objects").glob("*"))) < count:
            time.sleep(0.05)
        time.sleep(2)  # into the next stage
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        assert process.wait() in (-signal.SIGKILL, 0)
    assert kills >= 2
    assert start(tmp_path / "killed", recipe).wait() == 0
    assert start(tmp_path / "undisturbed", recipe).wait() == 0
    assert artifacts(tmp_path / "killed") == artifacts(tmp_path / "undisturbed")
