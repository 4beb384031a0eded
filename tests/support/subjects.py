"""Fixtures of tests over tiny models: ``SUBJECTS`` of a test file names them, and each is exported once."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_checkpoints import Exported
from shared_exports import exported_once
from tiny_families import TINY


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
