"""docs/run-record.md describes every field that a run record has, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord, StageRun, VariantRecord

PAGE = Path(__file__).parents[2] / "docs" / "run-record.md"
SECTIONS: dict[str, type[BaseModel]] = {
    "## The record": RunRecord,
    "## A variant": VariantRecord,
    "### A stage run": StageRun,
    "### A measurement": Measurement,
    "### A verdict": Judgement,
}


def fields_in(section: str) -> set[str]:
    """The names in the first column of the first table under a heading."""
    text = PAGE.read_text(encoding="utf-8")
    body = text[text.index(f"\n{section}") :]
    table = body[body.index("\n| ") :].split("\n\n")[0]
    return {name for line in table.splitlines()[3:] for name in re.findall(r"`([a-z_0-9]+)`", line.split("|")[1])}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_described(section: str) -> None:
    assert fields_in(section) == set(SECTIONS[section].model_fields)


def test_every_verdict_and_the_format_are_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{verdict.value}`" in text for verdict in Verdict)
    assert f"This page describes format {RunRecord.model_fields['format'].default}" in " ".join(text.split("\n"))
