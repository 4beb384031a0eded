"""The fixture that pytest finds through vlm-edge's entry point."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from run_folders import write_run

pytest_plugins = ("pytester",)
PLUGIN = "vlm_edge.pytest_plugin"
INSTALLED = any(each.value == PLUGIN for each in metadata.entry_points(group="pytest11"))
"""Not so where the tree was installed before it had the plugin."""


def outcome(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makepyfile(f"def test_release(vlm_edge_gate):\n    {body}\n")
    plugin = [] if INSTALLED else ["-p", PLUGIN]
    return pytester.runpytest_inprocess(*plugin, "-p", "no:cacheprovider", "-vv")


def test_a_run_that_is_met_passes(pytester: pytest.Pytester) -> None:
    write_run(pytester.path / "runs" / "toy")
    write_run(pytester.path / "main")
    outcome(pytester, 'vlm_edge_gate("runs/toy").assert_met()').assert_outcomes(passed=1)
    body = 'vlm_edge_gate("runs/toy", against="main", variant="compile", tolerances={"max_growth": None}).assert_met()'
    outcome(pytester, body).assert_outcomes(passed=1)


@pytest.mark.parametrize(("speedup", "word"), [(2.0, "MISSED"), (3.0, "UNDECIDED")])
def test_anything_else_fails_and_says_what(pytester: pytest.Pytester, speedup: float, word: str) -> None:
    write_run(pytester.path / "runs" / "toy", speedup=(speedup, 0.1))
    result = outcome(pytester, 'vlm_edge_gate("runs/toy").assert_met()')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"{word} *latency.p90_speedup*>= 3 x", f"toy: {word}: compile: *"])


def test_a_record_that_is_damaged_fails(pytester: pytest.Pytester) -> None:
    (write_run(pytester.path / "runs" / "toy") / "run.json").write_text("{}")
    result = outcome(pytester, 'vlm_edge_gate("runs/toy")')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*VlmEdgeError*run.json*"])


def test_the_verdict_can_be_looked_at(pytester: pytest.Pytester) -> None:
    write_run(pytester.path / "runs" / "toy", speedup=(2.0, 0.1))
    body = 'assert vlm_edge_gate("runs/toy").gate.judgements[1].verdict.value == "fail"'
    outcome(pytester, body).assert_outcomes(passed=1)


def test_pytest_finds_it_and_it_loads_nothing_else() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"vlm_edge": PLUGIN}
    assert not any(each.startswith("pytest") for each in project["dependencies"])
    script = f"import pytest, sys; before = set(sys.modules); import {PLUGIN}; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= {"vlm_edge", PLUGIN}


def test_nothing_of_the_package_imports_it() -> None:
    package = Path(__file__).parents[1] / "vlm_edge"
    users = [file for file in package.rglob("*.py") if "pytest" in file.read_text(encoding="utf-8")]
    assert users == [package / "pytest_plugin.py"]
