"""Two runs of the quickstart: one with numbers by hand (met, missed, undecided, left out), and a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.core.record import RunRecord, read_record


@pytest.fixture
def record() -> RunRecord:
    return read_record(Path(__file__).with_name("run.json"))


@pytest.fixture(scope="session")
def real() -> tuple[RunRecord, dict[str, Any]]:
    """What `vlm-edge run recipes/quickstart.yaml` gave on a busy two-core machine, and its regressed samples."""
    kept = json.loads(Path(__file__).with_name("quickstart.json").read_bytes())
    return RunRecord.model_validate(kept["record"]), kept["regressions"]
