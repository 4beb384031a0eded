"""A record edited by hand, or by whoever wants a gate open, is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from run_folders import write_run

from vlm_edge.cli.main import main
from vlm_edge.core.record import RunRecord, read_record
from vlm_edge.errors import VlmEdgeError


def edited(folder: Path, *place: str | int, value: str) -> Path:
    """The record of a run with one value replaced by a text that may be no JSON number."""
    file = folder / "run.json"
    record = json.loads(file.read_text())
    inner: Any = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = ""
    file.write_text(json.dumps(record).replace('""', value))
    return folder


COMPILE, FIRST = ("variants", 1), ("variants", 1, "measurements", 0)


@pytest.mark.parametrize("judged", [FIRST, (*COMPILE, "verdicts", 0, "measured")], ids=["measurement", "verdict"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(field, value) for field in ("low", "value", "high") for value in ("NaN", "Infinity", "-Infinity", "1e400")],
        ("low", "1e9"),
        ("high", "-1e9"),
        ("n", "0"),
        ("n", "-1"),
        ("n", "9" * 5000),
        ("n", "1.5"),
    ],
)
def test_a_measurement_that_is_none_is_refused(tmp_path: Path, judged: Any, field: str, value: str) -> None:
    folder = edited(write_run(tmp_path / "run"), *judged, field, value=value)
    with pytest.raises(VlmEdgeError, match=r"run.json: (variants.1.|invalid JSON: number out of range)"):
        read_record(folder)
    result = CliRunner().invoke(main, ["gate", str(folder)])
    assert result.exit_code == 1
    assert "fault in vlm-edge" not in result.stderr


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("started",), '"yesterday"'),
        (("started",), '"2026-11-30T12:00:00"'),
        (("started",), '"2026-11-30T12:00:00+00:00\\u001b"'),
        (("wall_s",), "NaN"),
        (("wall_s",), "-1"),
        (("host", "cpu"), "[NaN]"),
        (("recipe", "x"), '{"y": [1e999]}'),
        (("decided_by",), '"nobody"'),
        (("best",), '"nobody"'),
        (("incomplete",), '"it died"'),  # with a verdict
        (("variants",), "[]"),
        ((*COMPILE, "name"), '"baseline"'),
        ((*COMPILE, "artifacts", "engine"), '"../../x"'),
        ((*COMPILE, "outcomes"), '"../outcomes/x.json.gz"'),
        ((*COMPILE, "outcomes"), '"outcomes/../../x.json.gz"'),
        ((*COMPILE, "conditions"), '{"load": NaN}'),
        ((*COMPILE, "verdicts", 0, "bound"), '"<= nan"'),
        ((*COMPILE, "verdicts", 0, "bound"), '"a lot"'),
        ((*COMPILE, "verdicts", 0, "needed_n"), "-1"),
    ],
)
def test_what_a_run_does_not_write_is_refused(tmp_path: Path, place: tuple[str | int, ...], value: str) -> None:
    folder = edited(write_run(tmp_path / "run"), *place, value=value)
    with pytest.raises(VlmEdgeError, match="run the recipe again"):
        read_record(folder)


@pytest.mark.parametrize("text", ["", "[" * 9999, "null", "[]", "\udcff", '{"format": "' + "9" * 5000 + '"}'])
def test_what_is_no_record_at_all(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(VlmEdgeError) as error:
        read_record(tmp_path)
    assert len(error.value.message) < 500 + len(str(tmp_path))


@pytest.fixture
def incomplete(tmp_path: Path) -> Path:
    changes = {"verdict": "not_measured", "incomplete": "the worker died", "best": None}
    return write_run(tmp_path / "runs" / "toy", **changes)


def invoke(folder: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["--runs", str(folder.parent), "--store", str(folder / "store"), *arguments])


def test_an_incomplete_run_opens_no_gate(incomplete: Path) -> None:
    whole = write_run(incomplete.parent / "whole")
    for arguments in (
        ("gate", "toy"),
        ("gate", "toy", "--variant", "compile"),
        ("gate", "toy", "--against", "whole"),
        ("gate", "whole", "--against", "toy"),
    ):
        result = invoke(whole, *arguments)
        assert result.exit_code == 1
        assert "the run did not end, so there is nothing to judge: the worker died" in result.stderr


def test_an_incomplete_run_is_shown_as_one(incomplete: Path) -> None:
    write_run(incomplete.parent / "whole")
    for form in ("table", "markdown", "html"):
        result = invoke(incomplete, "report", "toy", "--format", form)
        assert result.exit_code == 0
        assert "INCOMPLETE" in result.stdout
        assert "the worker died" in result.stdout
    assert read_record(incomplete) == RunRecord.model_validate_json(
        invoke(incomplete, "report", "toy", "--json").stdout
    )
    (row,) = [row for row in json.loads(invoke(incomplete, "ls", "--json").stdout)["runs"] if not row["ended"]]
    assert (row["verdict"], row["variants"]) == (None, ["baseline", "compile"])
    compared = json.loads(invoke(incomplete, "compare", "toy", "whole", "--json").stdout)["runs"]
    assert [run["verdict"] for run in compared] == ["INCOMPLETE", "pass"]
    assert [run["did not end"] for run in compared] == ["the worker died", ""]


def test_what_an_incomplete_run_and_the_one_before_it_refer_to_stays(incomplete: Path) -> None:
    from vlm_edge.core.artifact import ArtifactKind
    from vlm_edge.core.store import Store, key_of

    store = Store(incomplete / "store")
    digests = []
    for name in ("now", "before", "loose"):
        with store.begin(key_of(name)) as (out, _):
            (out / "file").write_text(name)
            digests.append(store.seal(key_of(name), ArtifactKind.ENGINE, {"name": name}, {}, 1.0)[0].digest)
    for name, digest in (("run.json", digests[0]), ("run.previous.json", digests[1])):
        record = json.loads((incomplete / "run.json").read_text())
        for variant in record["variants"]:
            variant["artifacts"] = {"engine": digest}
        (incomplete / name).write_text(json.dumps(record))
    assert json.loads(invoke(incomplete, "gc", "--json").stdout)["artifacts"] == [digests[2]]
