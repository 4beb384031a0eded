"""run, check and plan through the real runner and store, on a toy table of stages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from toy_toolbox import toy_toolbox, write_recipe

from vlm_edge.core.budget import Verdict
from vlm_edge.core.record import RECORD_NAME, RunRecord


class Toy:
    """The toolbox behind the command line, and the log of what ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        model = folder / "model"
        model.mkdir()
        self.folder.mkdir()
        (model / "model.txt").write_text("weights\n")
        self.toolbox, self.log = toy_toolbox(model)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


@pytest.fixture
def empty(empty: Any, toy: Toy) -> Any:
    return replace(empty, toolbox=toy.toolbox)


def test_a_run_that_meets_its_budgets_ends_with_its_table_and_0(toy: Toy, empty: Any) -> None:
    result = empty.invoke("run", str(write_recipe(toy.folder)))
    assert (result.exit_code, result.exception) == (0, None)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[:1].isalpha()][:1] == ["variant"]
    assert "toy: MET: compile is within all 2 budgets" in lines
    assert f"record: {empty.runs / 'toy' / RECORD_NAME}" in lines
    assert f"bundle: {empty.runs / 'toy' / 'bundle'} (compile)" in lines


def test_json_is_the_record_and_nothing_else(toy: Toy, empty: Any) -> None:
    result = empty.invoke("run", "--json", str(write_recipe(toy.folder)))
    stored = json.loads((empty.runs / "toy" / RECORD_NAME).read_text())
    assert json.loads(result.stdout) == stored
    assert RunRecord.model_validate(stored).verdict is Verdict.PASS


def test_the_same_again_comes_from_the_store(toy: Toy, empty: Any) -> None:
    recipe = str(write_recipe(toy.folder))
    empty.invoke("run", recipe)
    toy.log.clear()
    assert empty.invoke("run", recipe).exit_code == 0
    assert toy.log == []


def test_another_recipe_of_the_same_name_is_announced(toy: Toy, empty: Any) -> None:
    assert "note:" not in empty.invoke("run", str(write_recipe(toy.folder))).stderr
    same = write_recipe(toy.folder, budgets={"latency": {"p90_speedup": 2.0}})
    assert "note:" not in empty.invoke("run", str(same)).stderr
    other = write_recipe(toy.folder, stages=[{"export": {}}, {"quantize": {}}], model="zoo:other")
    lines = [line for line in empty.invoke("run", str(other)).stderr.splitlines() if line.startswith("note:")]
    assert lines == [
        f"note: {empty.runs / 'toy'} holds the run of a recipe of this name with other model, stages; its record is "
        "kept as run.previous.json until the next run"
    ]


@pytest.mark.parametrize("limit", [{"p90_ms": 0.001}, {"p90_speedup": 100_000}])
def test_a_budget_that_can_not_be_met_is_3_and_named(toy: Toy, empty: Any, limit: dict[str, float]) -> None:
    recipe = write_recipe(toy.folder, budgets={"latency": limit})
    result = empty.invoke("run", str(recipe))
    assert result.exit_code == 3
    ((name, bound),) = limit.items()
    line = next(line for line in result.stdout.splitlines() if line.startswith("missed: compile"))
    assert f"latency.{name}: " in line
    assert "n 100; the bound is" in line
    assert f" {bound:g} " in line


def test_latencies_are_measured_again_and_longer_on_request(toy: Toy, empty: Any) -> None:
    recipe = str(write_recipe(toy.folder))
    empty.invoke("run", recipe)
    toy.log.clear()
    for arguments in ((recipe, "--remeasure", "--patience", "600"), ("--remeasure", recipe)):
        assert empty.invoke("run", *arguments).exit_code == 0
        assert set(toy.log) == {"latency"}
        toy.log.clear()
    for wrong in (["--remeasure=latency"], ["--patience", "0"]):
        assert empty.invoke("run", recipe, *wrong).exit_code == 2


def test_undecided_is_4(toy: Toy, empty: Any) -> None:
    recipe = write_recipe(toy.folder, budgets={"accuracy": {"max_drop_pt": 0.2}})
    result = empty.invoke("run", str(recipe))
    assert result.exit_code == 4
    assert "undecided: compile: accuracy.max_drop_pt" in result.stdout


def test_not_measured_is_5_and_says_why(toy: Toy, empty: Any) -> None:
    toy.toolbox.evaluators.missing = "the GPU is elsewhere"  # type: ignore[attr-defined]
    result = empty.invoke("run", str(write_recipe(toy.folder)))
    assert result.exit_code == 5
    assert "NOT MEASURED: the GPU is elsewhere" in " ".join(result.stdout.split())
    assert "pass" not in result.stdout


def test_an_evaluator_that_crashes_is_1_and_leaves_no_record(
    toy: Toy, empty: Any, monkeypatch: pytest.MonkeyPatch, state_home: Path
) -> None:
    monkeypatch.setattr(toy.toolbox.evaluators, "latency", Mock(side_effect=OSError("the worker died")))
    result = empty.invoke("run", "--json", str(write_recipe(toy.folder)))
    assert result.exit_code == 1
    assert "error: OSError: the worker died" in result.stderr
    assert result.stdout == ""
    assert not (empty.runs / "toy" / RECORD_NAME).exists()
    assert str(state_home / "vlm-edge" / "faults") in result.stderr


def test_each_variant_is_shown_as_it_is_measured_and_an_error_late_in_a_run_leaves_a_report(
    toy: Toy, empty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = empty.invoke("run", str(write_recipe(toy.folder)))
    names = ("baseline", "quantize", "prune", "compile")
    rows = [line for line in result.stderr.splitlines() if line.startswith(tuple(f"{name}: " for name in names))]
    assert [row.partition(":")[0] for row in rows] == list(names)
    assert "p90 speed-up 2.00 x [1.90, 2.10] MISSED" in rows[1]
    assert all(name not in empty.invoke("-q", "run", str(write_recipe(toy.folder))).stderr for name in names)

    latency, asked = toy.toolbox.evaluators.latency, []

    def dies(*arguments: Any, **settings: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 3:
            raise OSError("the worker died")
        return latency(*arguments, **settings)

    monkeypatch.setattr(toy.toolbox.evaluators, "latency", dies)
    recipe = str(write_recipe(toy.folder, name="late", seed=1, budgets={"latency": {"p99_ms": 30}}))
    result = empty.invoke("run", recipe)
    assert result.exit_code == 1
    assert f"`vlm-edge report {empty.runs / 'late'}`" in result.stderr
    shown = empty.invoke("report", "late")
    assert "late: INCOMPLETE: it ended after quantize: OSError: the worker died" in shown.stdout
    assert empty.invoke("gate", "late").exit_code == 1


FIVE_FAULTS: dict[str, Any] = {
    "budgets": {"accuracy": {"max_dropt": 1.0}},
    "target": "cpu-otr",
    "stages": [{"quantise": {}}, {"prune": {"strenght": 1}}, {"compile": {"strength": "fast"}}],
}


@pytest.mark.parametrize("command", ["check", "run", "plan"])
def test_five_faults_are_five_errors_with_places_and_2(toy: Toy, empty: Any, command: str) -> None:
    (toy.folder / "targets").mkdir()
    (toy.folder / "targets" / "cpu-ort.yaml").write_text("name: cpu-ort\nengine: onnxruntime\n")
    result = empty.invoke(command, str(write_recipe(toy.folder, **FIVE_FAULTS)))
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5
    joined = "\n".join(errors)
    for place in ("budgets.accuracy.max_dropt", "target", "stages[0]", "stages[1].prune.strenght", "stages[2].compile"):
        assert f"error: toy.yaml: {place}" in joined
    assert joined.count("did you mean") == 4
    assert result.stdout == ""


def test_check_lists_the_faults_as_json(toy: Toy, empty: Any) -> None:
    result = empty.invoke("check", "--json", str(write_recipe(toy.folder, **FIVE_FAULTS)))
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)["faults"]) == 5


def test_check_of_a_good_recipe(toy: Toy, empty: Any) -> None:
    recipe = str(write_recipe(toy.folder))
    result = empty.invoke("check", recipe)
    assert result.exit_code == 0
    assert result.stdout == f"{recipe}: no faults; zoo:toy for toy: export, quantize, prune, compile\n"
    assert json.loads(empty.invoke("check", "--json", recipe).stdout)["recipe"]["run"] == "all"
    assert toy.log == []


def test_a_recipe_that_comes_with_vlm_edge_is_found_from_anywhere(
    empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = replace(empty, toolbox=None).invoke("check", "recipes/quickstart.yaml")
    assert (result.exit_code, result.exception) == (0, None)
    assert all(line.startswith("reading ") for line in result.stderr.splitlines())


@pytest.mark.parametrize("command", ["check", "run", "plan"])
def test_a_recipe_that_is_not_there_is_1(toy: Toy, empty: Any, command: str) -> None:
    result = empty.invoke(command, str(toy.folder / "none.yaml"))
    assert result.exit_code == 1
    assert "no such recipe" in result.stderr


def test_plan_says_what_is_in_the_store_and_runs_nothing(toy: Toy, empty: Any) -> None:
    recipe = str(write_recipe(toy.folder))
    before = json.loads(empty.invoke("plan", "--json", recipe).stdout)
    assert not any(row["cached"] for row in before)
    assert toy.log == []
    empty.invoke("run", recipe)
    after = json.loads(empty.invoke("plan", "--json", recipe).stdout)
    assert all(row["cached"] for row in after)
    assert [(row["variant"], row["stage"]) for row in before] == [(row["variant"], row["stage"]) for row in after]


def test_plan_as_a_table(toy: Toy, empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = empty.invoke("plan", str(write_recipe(toy.folder))).stdout.splitlines()
    assert lines[2].split()[:4] == ["baseline", "export", "to", "run"]
    assert "waits for its input" in lines[3]
    assert "not known yet" in lines[2]
    assert lines[-1].endswith("0 in the store, 13 to run")
    empty.invoke("run", str(write_recipe(toy.folder)))
    lines = empty.invoke(
        "plan", str(write_recipe(toy.folder, stages=[{"export": {"strength": 2}}]))
    ).stdout.splitlines()
    assert "about 0 s" in lines[2]
    assert "to run in about 0 s; measuring" in lines[-1]


SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {support!r})
from toy_toolbox import toy_toolbox
from vlm_edge.cli.main import main

toolbox, log = toy_toolbox(Path({model!r}))
accuracy = toolbox.evaluators.accuracy

def chatty(*arguments):
    print("a library's remark")
    os.write(1, b"a native library's remark\\n")
    return accuracy(*arguments)

toolbox.evaluators.accuracy = chatty
main(obj=toolbox)
"""


def in_a_process(toy: Toy, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    support = str(Path(__file__).parents[1] / "support")
    script = SCRIPT.format(support=support, model=str(toy.folder.parent / "model"))
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=toy.folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_stdout_is_data_even_when_libraries_talk(toy: Toy) -> None:
    done = in_a_process(toy, "run", "--json", str(write_recipe(toy.folder)))
    assert done.returncode == 0
    assert json.loads(done.stdout)["verdict"] == "pass"
    assert "a library's remark" in done.stderr
    assert "a native library's remark" in done.stderr
    assert (toy.folder / ".vlm-edge" / "store" / "objects").is_dir()
    assert (toy.folder / "runs" / "toy" / RECORD_NAME).is_file()


def test_killed_in_a_stage_and_run_again_gives_the_same(toy: Toy) -> None:
    recipe = str(write_recipe(toy.folder))
    killed = in_a_process(toy, "--store", "other", "--runs", "first", "run", recipe, KILL_IN="prune")
    assert killed.returncode == -signal.SIGKILL
    again = json.loads(in_a_process(toy, "--store", "other", "--runs", "first", "run", "--json", recipe).stdout)
    whole = json.loads(in_a_process(toy, "run", "--json", recipe).stdout)

    def results(record: dict[str, Any]) -> list[Any]:
        return [(row["name"], row["artifacts"], row["measurements"], row["verdicts"]) for row in record["variants"]]

    assert results(again) == results(whole)
    assert again["variants"][0]["runs"][0]["cached"]


def test_an_interrupt_leaves_a_store_to_go_on_from(toy: Toy, empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = str(write_recipe(toy.folder))
    with monkeypatch.context() as patch:
        patch.setattr(toy.toolbox.evaluators, "accuracy", Mock(side_effect=KeyboardInterrupt))
        result = empty.invoke("run", recipe)
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
    toy.log.clear()
    assert empty.invoke("run", recipe).exit_code == 0
    assert toy.log[0] == "accuracy"
