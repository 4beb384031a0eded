from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import pytest

from vlm_edge.cli.progress import PlainProgress
from vlm_edge.cli.settings import Settings, logs_on_stderr, stdout_console, stdout_is_stderr
from vlm_edge.core.stage import SilentProgress


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [(-1, {"error"}), (0, {"error"}), (1, {"error", "warning"}), (2, {"error", "warning", "info", "debug"})],
)
def test_what_libraries_log(verbosity: int, shown: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("some.package")
    with logs_on_stderr(verbosity):
        logger.setLevel(logging.DEBUG)  # as torch and NNCF do when they are imported
        for level in ("debug", "info", "warning", "error"):
            getattr(logger, level)("a remark of level %s", level)
    captured = capsys.readouterr()
    assert {level for level in ("debug", "info", "warning", "error") if f"level {level}" in captured.err} == shown
    assert captured.out == ""


@pytest.mark.parametrize(("verbosity", "shown"), [(0, False), (1, True)])
def test_warnings_are_for_v(verbosity: int, shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with logs_on_stderr(verbosity):
            warnings.warn("this will change", FutureWarning, stacklevel=1)
    assert ("this will change" in capsys.readouterr().err) is shown


def test_logging_is_left_as_it_was() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.root.manager.disable, warnings.showwarning)
    with logs_on_stderr(2):
        pass
    assert (root.level, list(root.handlers), logging.root.manager.disable, warnings.showwarning) == before


def test_what_is_printed_while_working_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with stdout_is_stderr():
        print("from python")
        sys.stdout.flush()
        os.write(1, b"from a native library\n")
    print("data")
    captured = capfd.readouterr()
    assert captured.out == "data\n"
    assert "from python" in captured.err
    assert "from a native library" in captured.err


def test_stdout_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), stdout_is_stderr():
        raise RuntimeError
    print("data")
    os.write(1, b"more data\n")
    assert sorted(capfd.readouterr().out.splitlines()) == ["data", "more data"]


@pytest.mark.parametrize(("verbosity", "kind"), [(-1, SilentProgress), (0, PlainProgress)])
def test_quiet_draws_no_progress(verbosity: int, kind: type) -> None:
    with Settings(Path("store"), Path("runs"), verbosity).working() as progress:
        assert isinstance(progress, kind)


def test_piped_tables_are_as_wide_as_columns_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    assert stdout_console().width == 77
    monkeypatch.delenv("COLUMNS")
    assert stdout_console().width == 120
