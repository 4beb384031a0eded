"""A run record with five variants: met, missed, undecided, left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_edge.core.record import RunRecord, read_record


@pytest.fixture
def record() -> RunRecord:
    return read_record(Path(__file__).with_name("run.json"))
