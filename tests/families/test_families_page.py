"""docs/families.md has a row of every family, and every row has a test that measures it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from families_page import BOUNDS, Row, agree, bound, read_rows
from tiny_families import TINY

from vlm_edge.families import FAMILIES


def test_every_family_has_a_tiny_model_and_a_row() -> None:
    assert {tiny.family for tiny in TINY.values()} == set(FAMILIES)
    assert list(read_rows()) == list(TINY)


def test_every_row_is_measured(request: pytest.FixtureRequest) -> None:
    items = [item for item in request.session.items if item.path.parent == Path(__file__).parent]
    if {item.path for item in items} != set(Path(__file__).parent.glob("test_*.py")):
        pytest.skip("only some of the families' tests are run")
    rows = [
        item.callspec.params["subject"]
        for item in items
        if isinstance(item, pytest.Function) and "families_page" in item.fixturenames
    ]
    assert sorted(rows) == sorted(TINY)


@pytest.mark.parametrize(("value", "said"), [(0.0, "< 1e-06"), (3e-7, "< 1e-06"), (4e-7, "< 1e-05"), (3e-5, "< 1e-04")])
def test_bounds_leave_room_for_another_machine(value: float, said: str) -> None:
    assert bound(value) == said
    assert 3 * value <= float(said[1:]) in BOUNDS


def test_a_smaller_error_still_agrees_and_anything_else_does_not() -> None:
    said = Row("m", "`M`", "decoder", "vqa", "< 1e-05", "embeddings' cosine distance < 1e-06", "nothing")
    assert agree(said, said)
    assert agree(said, replace(said, error="< 1e-06"))
    assert not agree(said, replace(said, error="< 1e-04"))
    assert not agree(said, replace(said, answers="embeddings' cosine distance < 1e-05"))
    assert not agree(said, replace(said, components="decoder, fusion"))
    assert not agree(said, replace(said, answers="32 tokens identical, with and without cache"))
