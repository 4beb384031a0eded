from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.cli.ls import age_text
from vlm_edge.core.record import PREVIOUS_NAME, RECORD_NAME
from vlm_edge.core.store import Store


def test_ls_lists_runs_and_artifacts_with_their_users(workplace: Any) -> None:
    listing = json.loads(workplace.invoke("ls", "--json").stdout)
    assert [(run["name"], run["verdict"], run["best"]) for run in listing["runs"]] == [
        ("quickstart", "pass", "compile")
    ]
    artifacts = {row["digest"]: row for row in listing["artifacts"]}
    assert set(artifacts) == {*workplace.kept, workplace.unreferenced}
    assert artifacts[workplace.kept[1]]["size_bytes"] == 2_000_000
    assert artifacts[workplace.kept[1]]["runs"] == ["quickstart"]
    assert artifacts[workplace.unreferenced]["runs"] == []
    assert listing["size_bytes"] == 2_001_500


def test_ls_as_a_table(workplace: Any) -> None:
    lines = workplace.invoke("ls").stdout.splitlines()
    row = next(line.split() for line in lines if line.startswith(workplace.kept[1][:12]))
    assert row[1:4] == ["engine", "compile", "2.00"]
    assert row[-1] == "quickstart"
    assert lines[-1].startswith("3 artifacts in ")
    assert lines[-1].endswith(": 2.0 MB")


def test_ls_of_nothing_makes_nothing_and_says_how_to_begin(empty: Any) -> None:
    result = empty.invoke("ls")
    assert result.exit_code == 0
    assert "`vlm-edge run RECIPE` makes one" in result.stdout
    assert not empty.store.exists()
    assert not empty.runs.exists()


def test_ls_warns_of_a_broken_record_and_lists_the_rest(workplace: Any) -> None:
    broken = workplace.runs / "broken"
    broken.mkdir()
    (broken / RECORD_NAME).write_text("{")
    result = workplace.invoke("ls", "--json")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)["runs"]) == 1
    assert "broken" in result.stderr


def test_gc_removes_what_no_run_names_and_nothing_else(workplace: Any) -> None:
    dry = json.loads(workplace.invoke("gc", "--dry-run", "--json").stdout)
    store = Store(workplace.store)
    assert dry["artifacts"] == [workplace.unreferenced]
    assert dry["size_bytes"] == 500
    assert len(store.records()) == 3

    result = workplace.invoke("gc")
    assert result.exit_code == 0
    assert result.stdout.startswith("removed 1 artifacts, 0 cached measurements, 0 unfinished stage runs, ")
    assert "0 temporary files: 0.0 MB (500 bytes)" in result.stdout
    assert f"{workplace.unreferenced[:12]} prune" in result.stdout
    assert {record.digest for record in store.records()} == set(workplace.kept)
    assert json.loads(workplace.invoke("gc", "--json").stdout)["artifacts"] == []


def test_the_first_line_of_a_dry_run_says_what_would_go(workplace: Any) -> None:
    first = workplace.invoke("gc", "--dry-run").stdout.splitlines()[0]
    assert first.startswith("would remove 1 artifacts")
    assert first.endswith("(500 bytes)")


def test_gc_removes_nothing_when_a_record_can_not_be_read(workplace: Any) -> None:
    (workplace.runs / "quickstart" / RECORD_NAME).write_text("{")
    result = workplace.invoke("gc")
    assert result.exit_code == 1
    assert "nothing was removed" in result.stderr
    assert len(Store(workplace.store).records()) == 3


def test_gc_counts_the_record_that_an_interrupted_run_moved_aside(workplace: Any) -> None:
    folder = workplace.runs / "quickstart"
    (folder / RECORD_NAME).rename(folder / PREVIOUS_NAME)
    workplace.invoke("gc")
    assert {record.digest for record in Store(workplace.store).records()} == set(workplace.kept)


def test_a_run_that_did_not_end_has_no_verdict(workplace: Any) -> None:
    folder = workplace.runs / "quickstart"
    (folder / RECORD_NAME).rename(folder / PREVIOUS_NAME)
    (run,) = json.loads(workplace.invoke("ls", "--json").stdout)["runs"]
    assert (run["ended"], run["verdict"]) == (False, None)
    assert "did not end" in workplace.invoke("ls").stdout
    refused = workplace.invoke("report", "quickstart")
    assert refused.exit_code == 1
    assert "the last run did not end" in refused.stderr
    assert workplace.invoke("report", str(folder / PREVIOUS_NAME)).exit_code == 0


def test_gc_waits_for_no_run_and_disturbs_none(workplace: Any) -> None:
    with Store(workplace.store).in_use():
        result = workplace.invoke("gc")
    assert result.exit_code == 1
    assert "a run is using this store" in result.stderr
    assert len(Store(workplace.store).records()) == 3


def test_gc_of_a_store_that_is_not_there_makes_none(empty: Any) -> None:
    result = empty.invoke("gc")
    assert result.exit_code == 1
    assert "no such store" in result.stderr
    assert not empty.store.exists()


def test_the_store_can_be_named_in_the_environment(workplace: Any) -> None:
    from click.testing import CliRunner

    from vlm_edge.cli.main import main

    environment = {"VLM_EDGE_STORE": str(workplace.store), "VLM_EDGE_RUNS": str(workplace.runs)}
    listing = json.loads(CliRunner().invoke(main, ["ls", "--json"], env=environment).stdout)
    assert (len(listing["runs"]), len(listing["artifacts"])) == (1, 3)


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (timedelta(seconds=5), "5 s"),
        (timedelta(seconds=-5), "0 s"),
        (timedelta(minutes=1), "1 min"),
        (timedelta(minutes=59), "59 min"),
        (timedelta(hours=1), "1 h"),
        (timedelta(hours=47), "47 h"),
        (timedelta(days=2), "2 days"),
    ],
)
def test_ages(ago: timedelta, text: str) -> None:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    assert age_text((now - ago).isoformat(), now) == text


def test_report_finds_a_run_by_name_folder_and_file(workplace: Any) -> None:
    folder: Path = workplace.runs / "quickstart"
    outputs = [workplace.invoke("report", name) for name in ("quickstart", str(folder), str(folder / RECORD_NAME))]
    assert [output.exit_code for output in outputs] == [0, 0, 0]
    assert len({output.stdout for output in outputs}) == 1
    assert "quickstart: MET: compile is within all 3 budgets" in outputs[0].stdout


def test_report_as_json_is_the_record(workplace: Any) -> None:
    stored = json.loads((workplace.runs / "quickstart" / RECORD_NAME).read_text())
    assert json.loads(workplace.invoke("report", "quickstart", "--json").stdout) == stored
    assert json.loads(workplace.invoke("report", "quickstart", "--format", "json").stdout) == stored


def test_report_as_markdown(workplace: Any) -> None:
    assert workplace.invoke("report", "quickstart", "--format", "markdown").stdout.startswith("# quickstart: MET")


def test_report_of_an_unknown_run_lists_near_matches(workplace: Any) -> None:
    result = workplace.invoke("report", "quikstart")
    assert result.exit_code == 1
    assert "did you mean 'quickstart'?" in result.stderr
