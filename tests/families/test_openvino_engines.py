"""Every family compiles for OpenVINO, each component held against its graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_checkpoints import Exported
from tiny_families import TINY

from vlm_edge.api import run_stage
from vlm_edge.backends import engine_available
from vlm_edge.backends.reference import MAX_RELATIVE_ERROR
from vlm_edge.runtime import load_pipeline

SUBJECTS = list(TINY)
pytestmark = pytest.mark.skipif(engine_available("openvino") is not None, reason="OpenVINO is not installed")


def test_it_compiles_and_loads(subject: Exported, tmp_path: Path) -> None:
    facts = run_stage("compile", {}, subject.folder, tmp_path / "engine", target="cpu-openvino")
    parts = facts["components"]
    assert set(parts) == set(subject.manifest.components)
    assert all(part["max_relative_error"] <= MAX_RELATIVE_ERROR for part in parts.values())
    manifest = load_pipeline(tmp_path / "engine").manifest
    assert {row.file.rpartition(".")[2] for row in manifest.components.values()} == {"xml"}
