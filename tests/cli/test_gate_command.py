"""``vlm-edge gate`` on run folders: exit codes, messages, and what CI systems read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from run_folders import HOST, measured, scores_with, write_run

RECIPE = {
    "name": "strict",
    "model": "zoo:none-of-this-name",
    "task": {"kind": "vqa", "data": "toy.yaml"},
    "target": {"name": "toy", "engine": "onnxruntime"},
    "budgets": {"latency": {"p90_speedup": 5.0}},
    "stages": [{"export": {}}, {"compile": {}}],
}


@pytest.fixture
def run(empty: Any) -> Path:
    return write_run(empty.runs / "toy")


@pytest.mark.parametrize(
    ("changes", "code", "line"),
    [
        ({}, 0, "toy: MET: compile is within all 2 budgets"),
        ({"speedup": (2.0, 0.1)}, 3, "toy: MISSED: compile: 1 missed of 2 budgets"),
        ({"speedup": (3.0, 0.1)}, 4, "toy: UNDECIDED: compile: 1 undecided of 2 budgets"),
        ({"unmeasured": "the GPU is elsewhere"}, 5, "toy: NOT MEASURED: compile: 2 not measured of 2 budgets"),
        ({"unmeasured": "the GPU is elsewhere", "budgets": {}}, 2, ""),
    ],
)
def test_the_exit_code_is_the_verdict(empty: Any, changes: dict[str, Any], code: int, line: str) -> None:
    write_run(empty.runs / "toy", **changes)
    result = empty.invoke("gate", "toy")
    assert (result.exit_code, (result.stdout.splitlines() or [""])[-1]) == (code, line)
    if "unmeasured" in changes and code == 5:
        assert result.stdout.count("the GPU is elsewhere") == 2


def test_every_budget_has_value_interval_n_bound_and_what_would_decide_it(empty: Any) -> None:
    budgets = {"accuracy": {"max_drop_pt": 1.0, "min_ratio": 0.99}, "latency": {"p90_speedup": 3.0}}
    write_run(empty.runs / "toy", budgets=budgets, drop=measured("accuracy_drop_pt", 0.75, 0.5, n=1000, unit="pt"))
    result = empty.invoke("gate", "toy")
    assert result.exit_code == 5
    lines = result.stdout.splitlines()
    drop = next(index for index, line in enumerate(lines) if "accuracy.max_drop_pt" in line)
    assert lines[drop].split("  ")[0] == "UNDECIDED"
    assert "0.75 pt [0.25, 1.25], n 1000" in lines[drop]
    assert lines[drop].endswith("<= 1 pt")
    assert lines[drop + 1].strip() == (
        "the interval holds the bound; these 1,000 samples show <= 1.25; about 10,942 samples would decide it"
    )
    ratio = next(index for index, line in enumerate(lines) if "accuracy.min_ratio" in line)
    assert "accuracy_ratio" in lines[ratio + 1]


def test_json_is_the_gate_and_its_code(run: Path, empty: Any) -> None:
    result = empty.invoke("gate", str(run / "run.json"), "--json")
    found = json.loads(result.stdout)
    assert (found["verdict"], found["exit_code"], found["variant"]) == ("pass", 0, "compile")
    assert [each["budget"] for each in found["judgements"]] == ["accuracy.max_drop_pt", "latency.p90_speedup"]
    assert found["judgements"][1]["measured"]["n"] == 400


@pytest.mark.usefixtures("run")
def test_budgets_of_another_recipe_need_neither_its_model_nor_a_measurement(empty: Any, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("{}\n")
    recipe = tmp_path / "strict.yaml"
    recipe.write_text(json.dumps(RECIPE))
    result = empty.invoke("gate", "toy", "--recipe", str(recipe))
    assert result.exit_code == 3
    assert result.stdout.splitlines()[0].endswith("4 x [3.96, 4.04], n 400  >= 5 x")
    own = [{"export": {}}, {"compile": {"budgets": {"latency": {"p90_speedup": 3.5}}}}]
    recipe.write_text(json.dumps({**RECIPE, "stages": own}))
    assert empty.invoke("gate", "toy", "--recipe", str(recipe)).exit_code == 0
    recipe.write_text(json.dumps({**RECIPE, "budgets": {"latency": {"p90_sped": 1}}}))
    faulty = empty.invoke("gate", "toy", "--recipe", str(recipe))
    assert faulty.exit_code == 2
    assert "did you mean 'p90_speedup'" in faulty.stderr


@pytest.mark.usefixtures("run")
def test_another_variant(empty: Any) -> None:
    result = empty.invoke("gate", "toy", "--variant", "baseline")
    assert (result.exit_code, result.stdout.count("the evaluation gave no")) == (5, 2)
    unknown = empty.invoke("gate", "toy", "--variant", "compiled")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "did you mean 'compile'" in unknown.stderr


# -- damaged, missing, of another version -----------------------------------------------------------------------------


@pytest.mark.usefixtures("run")
def test_a_run_that_is_not_there_is_1_and_lists_near_names(empty: Any) -> None:
    result = empty.invoke("gate", "toi")
    assert result.exit_code == 1
    assert "did you mean 'toy'" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "run.json"),
        (b'{"format": 2, "name": "toy"', "run.json"),
        (b'{"format": 1, "name": "toy", "variants": []}', "format"),
        (b'{"format": 3, "name": "toy", "variants": []}', "format"),
        (b"\xff\xfe\x00", "run.json"),
        (b"[]", "run.json"),
    ],
)
def test_a_record_that_can_not_be_read_is_1_and_named(run: Path, empty: Any, content: bytes, message: str) -> None:
    (run / "run.json").write_bytes(content)
    result = empty.invoke("gate", "toy")
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr.splitlines()[0]
    assert "fault in vlm-edge" not in result.stderr


def test_a_run_whose_last_try_did_not_end_is_1(run: Path, empty: Any) -> None:
    (run / "run.json").rename(run / "run.previous.json")
    result = empty.invoke("gate", "toy")
    assert result.exit_code == 1
    assert "did not end" in result.stderr


def test_a_bundle_that_was_damaged_is_1_and_named(run: Path, empty: Any) -> None:
    (run / "bundle" / "model.onnx").write_bytes(b"weight")
    result = empty.invoke("gate", "toy")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{run / 'bundle'}: not what was judged" in result.stderr


# -- against another run ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("run")
def test_the_same_run_again_is_met(empty: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "main")
    result = empty.invoke("gate", "toy", "--against", str(tmp_path / "main"))
    assert result.exit_code == 0
    assert f"within all 6 budgets (against {tmp_path / 'main'})" in result.stdout
    assert result.stdout.count("against.") == 4


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "missed"),
    [
        ({"scores": scores_with(380, 20)}, [], 3, "against.max_drop_pt"),
        ({"scores": scores_with(380, 20)}, ["--max-drop-pt", "10"], 0, ""),
        ({"scores": scores_with(399, 1)}, [], 4, "against.max_drop_pt"),
        ({"speedup": (3.5, 0.03)}, [], 3, "against.max_slowdown[p90]"),
        ({"speedup": (3.5, 0.03)}, ["--max-slowdown", "1.2"], 0, ""),
        ({"speedup": (3.5, 0.03)}, ["--max-slowdown", "off"], 0, ""),
        ({"speedup": (3.85, 0.2)}, [], 4, "against.max_slowdown[p90]"),
        ({"speedup": (3.8, 0.01), "control": 1.2}, [], 4, "against.max_slowdown[p90]"),
        ({"size": 1_020_000}, [], 3, "against.max_growth"),
        ({"rss": 120.0}, ["--max-memory-growth", "1.1"], 3, "against.max_memory_growth"),
        ({"host": {**HOST, "cpu": "Another CPU"}}, [], 5, "against.max_slowdown[p90]"),
        ({"data": "e" * 64}, [], 5, "against.max_drop_pt"),
    ],
)
def test_what_was_lost_against_another_run(
    empty: Any, tmp_path: Path, changes: dict[str, Any], arguments: list[str], code: int, missed: str
) -> None:
    speedy = {"speedup": (4.0, 0.02)}
    write_run(tmp_path / "main", weights=b"main", scores=(1.0,) * 400, **speedy)
    budgets = {"latency": {"p90_speedup": 1.5}}
    write_run(empty.runs / "toy", **{**speedy, "budgets": budgets, **changes})
    quiet = ["--max-drop-pt", "5"] if "scores" not in changes and "data" not in changes else []
    result = empty.invoke("gate", "toy", "--against", str(tmp_path / "main"), *quiet, *arguments)
    assert result.exit_code == code, result.stdout
    if missed:
        line = next(line for line in result.stdout.splitlines() if missed in line)
        word = {3: "MISSED", 4: "UNDECIDED", 5: "NOT MEASURED"}[code]
        assert line.startswith(word)


@pytest.mark.parametrize("changes", [{"name": "other"}, {"task": "classification"}])
@pytest.mark.usefixtures("run")
def test_a_run_of_something_else_is_a_usage_error(empty: Any, tmp_path: Path, changes: dict[str, str]) -> None:
    write_run(tmp_path / "other", **changes)
    result = empty.invoke("gate", "toy", "--against", str(tmp_path / "other"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the runs are of different" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-drop-pt", "1"],
        ["--measure", "toy.yaml"],
        ["--against", "toy", "--max-slowdown", "fast"],
        ["--against", "toy", "--max-slowdown", "0"],
        ["--against", "toy", "--max-growth", "-1"],
        ["--against", "toy", "--max-growth", "nan"],
        ["--against", "toy", "--variant", "none"],
    ],
)
@pytest.mark.usefixtures("run")
def test_usage(empty: Any, arguments: list[str]) -> None:
    result = empty.invoke("gate", "toy", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.usefixtures("run")
def test_outcomes_that_were_damaged_are_1_and_named(empty: Any, tmp_path: Path) -> None:
    main = write_run(tmp_path / "main")
    (main / "outcomes" / "compile.json.gz").write_bytes(b"\x1f\x8b\x08")
    result = empty.invoke("gate", "toy", "--against", str(main))
    assert result.exit_code == 1
    assert "compile.json.gz: damaged" in result.stderr


# -- what CI systems read ---------------------------------------------------------------------------------------------


def red(file: Path) -> list[tuple[str, str]]:
    """(element, type) of everything in a JUnit file that is no pass."""
    root = ElementTree.parse(file).getroot()
    return [(each.tag, each.get("type", "")) for tag in ("failure", "error") for each in root.iter(tag)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"speedup": (2.0, 0.1)}, [("failure", "missed")]),
        ({"speedup": (3.0, 0.1)}, [("failure", "undecided")]),
        ({"unmeasured": "no GPU"}, [("error", "not_measured")] * 2),
    ],
)
def test_a_junit_file_is_red_whenever_the_code_is_not_0(
    empty: Any, tmp_path: Path, changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    write_run(empty.runs / "toy", **changes)
    result = empty.invoke("gate", "toy", "--junit", str(tmp_path / "new" / "junit.xml"))
    assert red(tmp_path / "new" / "junit.xml") == expected
    assert (result.exit_code == 0) == (expected == [])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["junit.xml"]


def test_a_gate_that_fails_to_judge_leaves_no_old_junit_file(run: Path, empty: Any, tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    assert empty.invoke("gate", "toy", "--junit", str(file)).exit_code == 0
    assert red(file) == []
    (run / "run.json").write_text("{}")
    assert empty.invoke("gate", "toy", "--junit", str(file)).exit_code == 1
    assert red(file) == [("error", "VlmEdgeError")]
    assert "run.json" in ElementTree.parse(file).getroot().findall(".//error")[0].get("message", "")


@pytest.mark.usefixtures("run")
def test_a_junit_file_that_can_not_be_written_is_1_before_anything_is_judged(empty: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = empty.invoke("gate", "toy", "--junit", str(tmp_path / "file" / "junit.xml"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "junit.xml: can't be written" in result.stderr


def test_github_gets_annotations_on_stderr_and_a_summary(
    empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("what another step said\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    write_run(empty.runs / "toy", speedup=(2.0, 0.1))
    result = empty.invoke("gate", "toy", "--json")
    assert json.loads(result.stdout)["verdict"] == "fail"
    assert result.stderr.startswith(
        "::error title=toy%3A MISSED%3A latency.p90_speedup::compile: latency.p90_speedup: 2"
    )
    text = summary.read_text()
    assert text.startswith("what another step said\n## toy: MISSED")
    assert "latency.p90_speedup" in text
    summary.unlink()
    assert "::" not in empty.invoke("gate", "toy", "--no-github").stderr
    assert not summary.exists()


def test_github_hears_of_a_gate_that_could_not_judge(
    run: Path, empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (run / "bundle" / "model.onnx").write_bytes(b"")
    result = empty.invoke("gate", "toy", "--github")
    assert result.exit_code == 1
    assert "::error title=toy%3A NO VERDICT::" in result.stderr
    assert "not what was judged" in (tmp_path / "summary.md").read_text()


@pytest.mark.usefixtures("run")
def test_a_summary_that_can_not_be_written_changes_no_verdict(
    empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    result = empty.invoke("gate", "toy", "--github")
    assert result.exit_code == 0
    assert "no job summary" in result.stderr
