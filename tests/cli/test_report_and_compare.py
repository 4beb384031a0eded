"""``vlm-edge report`` and ``vlm-edge compare``: where each form goes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from run_folders import write_run

from vlm_edge.cli.main import main
from vlm_edge.core.record import read_record


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs" / "a", name="a", weights=b"a")
    write_run(tmp_path / "runs" / "b", name="b", weights=b"b", size=2_000_000)
    regressions = {"compile": [{"id": "q7", "text": "what is it?", "baseline": "teal", "candidate": "navy"}]}
    (tmp_path / "runs" / "a" / "regressions.json").write_text(json.dumps(regressions))
    return tmp_path / "runs"


def invoke(runs: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--runs", str(runs), *arguments])


def test_html_is_written_beside_the_record(runs: Path) -> None:
    result = invoke(runs, "report", "a", "--html")
    assert result.exit_code == 0
    assert result.stdout.strip() == str(runs / "a" / "report.html")
    page = (runs / "a" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "navy" in page


def test_html_goes_where_it_is_told(runs: Path, tmp_path: Path) -> None:
    result = invoke(runs, "report", "a", "--html", "-o", str(tmp_path / "out" / "page.html"))
    assert result.stdout.strip() == str(tmp_path / "out" / "page.html")
    assert "navy" in (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert invoke(runs, "report", "a", "--format", "html").stdout.startswith("<!DOCTYPE html>")


def test_markdown_has_the_samples_and_json_is_the_record(runs: Path) -> None:
    assert "| q7 | - | what is it? |" in invoke(runs, "report", "a", "--format", "markdown").stdout
    assert json.loads(invoke(runs, "report", "a", "--json").stdout) == read_record(runs / "a").model_dump(mode="json")


def test_samples_are_not_taken_for_those_of_the_run_before(runs: Path) -> None:
    (runs / "a" / "run.json").rename(runs / "a" / "run.previous.json")
    result = invoke(runs, "report", str(runs / "a" / "run.previous.json"), "--format", "html")
    assert result.exit_code == 0
    assert "navy" not in result.stdout


def test_the_table_is_for_a_terminal(runs: Path, tmp_path: Path) -> None:
    assert invoke(runs, "report", "a", "-o", str(tmp_path / "x")).exit_code == 2
    assert invoke(runs, "compare", "a", "b", "-o", str(tmp_path / "x")).exit_code == 2
    assert not (tmp_path / "x").exists()


def test_a_place_that_can_not_be_written_is_named(runs: Path) -> None:
    result = invoke(runs, "report", "a", "--html", "-o", str(runs / "a" / "run.json" / "page.html"))
    assert result.exit_code == 1
    assert "page.html: can't be written" in result.stderr


def test_two_runs_side_by_side(runs: Path) -> None:
    result = invoke(runs, "compare", "a", "b")
    assert result.exit_code == 0
    assert "2 x (exact)" in result.stdout
    values = json.loads(invoke(runs, "compare", "a", "b", "--json").stdout)
    assert [run["run"] for run in values["runs"]] == ["a", "b"]
    assert values["recipe"] == {"name": ["a", "b"]}
    markdown = invoke(runs, "compare", "a", "b", "a", "--format", "markdown").stdout
    assert markdown.startswith("# a (1) / b (2) / a (3)\n")
    assert invoke(runs, "compare", "a", "b", "--format", "html").stdout.startswith("<!DOCTYPE html>")


def test_one_variant_of_each(runs: Path) -> None:
    values = json.loads(invoke(runs, "compare", "a", "b", "--variant", "baseline", "--json").stdout)
    assert [run["variant"] for run in values["runs"]] == ["baseline", "baseline"]
    result = invoke(runs, "compare", "a", "b", "--variant", "compil")
    assert result.exit_code == 2
    assert "did you mean 'compile'" in result.stderr


def test_one_run_is_not_enough(runs: Path) -> None:
    result = invoke(runs, "compare", "a")
    assert result.exit_code == 2
    assert "at least two runs" in result.stderr


def test_an_unknown_run_is_named_with_those_that_are_there(runs: Path) -> None:
    result = invoke(runs, "compare", "a", "bb")
    assert result.exit_code == 1
    assert "bb: no such run" in result.stderr
