"""docs/families.md has a row of every family, and every row has a test that measures it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from families_page import COMPONENT_BAR, COSINE_BAR, PAGE, SCORE_BAR, read_rows
from tiny_families import TINY

from vlm_edge.families import FAMILIES


def test_every_family_has_a_tiny_model_and_a_row() -> None:
    assert {tiny.family for tiny in TINY.values()} == set(FAMILIES)
    assert list(read_rows()) == list(TINY)


def test_every_row_is_measured(request: pytest.FixtureRequest) -> None:
    files = set(Path(__file__).parent.rglob("test_*.py"))
    items = [item for item in request.session.items if item.path in files]
    if {item.path for item in items} != files:
        pytest.skip("only some of the families' tests are run")
    rows = [
        item.callspec.params["subject"]
        for item in items
        if isinstance(item, pytest.Function) and "families_page" in item.fixturenames
    ]
    assert sorted(rows) == sorted(TINY)


def test_the_page_names_the_bars_and_no_other_bound() -> None:
    text = PAGE.read_text(encoding="utf-8")
    bars = {f"{bar:.0e}" for bar in (COMPONENT_BAR, COSINE_BAR, SCORE_BAR)}
    assert set(re.findall(r"\d(?:\.\d+)?e-\d+", text.replace("1e-4", "1e-04").replace("1e-5", "1e-05"))) == bars
