"""One shape for the tests of families: ``SUBJECTS`` names tiny models, each is exported once, and its row measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from families_page import BEGIN, PAGE, Row, read_rows, row, write_rows
from family_checkpoints import Exported
from shared_exports import exported_once
from tiny_families import TINY

WRITE = "VLM_EDGE_WRITE_FAMILIES"
"""Environment variable: write the rows into the page (`make families-table`) rather than compare them with it."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        metafunc.parametrize("subject", metafunc.module.SUBJECTS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny model of the test file's ``SUBJECTS``, exported."""
    tiny = TINY[request.param]
    return exported_once(tmp_path_factory, request.param, tiny.write, tiny.model)


@pytest.fixture(scope="module")
def checkpoint(subject: Exported) -> Path:
    """The subject's checkpoint."""
    return subject.checkpoint


@pytest.fixture(scope="session")
def _measured() -> Iterator[dict[str, Row]]:
    rows: dict[str, Row] = {}
    yield rows
    if WRITE in os.environ:
        write_rows(rows, list(TINY))


@pytest.fixture
def families_page(subject: Exported, _measured: dict[str, Row]) -> Callable[..., None]:
    """Called with what a test found equal to transformers (see ``families_page.row``): holds the page to it."""
    name = subject.name

    def hold(differs: str, **found: object) -> None:
        assert subject.family.name == TINY[name].family
        _measured[name] = row(name, subject, differs, **found)
        if WRITE not in os.environ:
            said = read_rows()[name]
            assert said == _measured[name], f"{PAGE.name}: the row is {said}, measured {_measured[name]}; {BEGIN}"

    return hold
