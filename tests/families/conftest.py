"""One shape for the tests of families: ``SUBJECTS`` names tiny models, and the row of each is measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from broken_checkpoints import blip  # noqa: F401
from families_page import BEGIN, PAGE, Row, read_rows, row, write_rows
from family_checkpoints import Exported
from subjects import checkpoint, pytest_generate_tests, subject  # noqa: F401  (fixtures and a hook of this folder)
from tiny_families import TINY

WRITE = "VLM_EDGE_WRITE_FAMILIES"
"""Environment variable: write the rows into the page (`make families-table`) rather than compare them with it."""


@pytest.fixture(scope="session")
def _measured() -> Iterator[dict[str, Row]]:
    rows: dict[str, Row] = {}
    yield rows
    if WRITE in os.environ:
        write_rows(rows, list(TINY))


@pytest.fixture
def families_page(subject: Exported, _measured: dict[str, Row]) -> Callable[..., None]:  # noqa: F811
    """Called with what a test found equal to transformers (see ``families_page.row``): holds the page to it."""
    name = subject.name

    def hold(differs: str, **found: object) -> None:
        assert subject.family.name == TINY[name].family
        _measured[name] = row(name, subject, differs, **found)
        if WRITE not in os.environ:
            said = read_rows()[name]
            assert said == _measured[name], f"{PAGE.name}: the row is {said}, measured {_measured[name]}; {BEGIN}"

    return hold
