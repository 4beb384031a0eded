"""Four cases that other tools let pass: an impossible goal, a corrupt model, an evaluator that raises, a metric that is
missing. Each ends non-zero, with the code that is its own and a message that says which; and so says the JUnit file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
from tiny_bench import Bench, build_bench
from toy_toolbox import toy_toolbox, write_recipe

from vlm_edge.core.record import RECORD_NAME


class Toy:
    """A recipe on toy stages and evaluators behind the real command line."""

    def __init__(self, folder: Path, workplace: Any) -> None:
        self.folder = folder / "recipes"
        self.folder.mkdir()
        (folder / "model").mkdir()
        (folder / "model" / "model.txt").write_text("weights\n")
        self.toolbox, self.log = toy_toolbox(folder / "model")
        self.workplace = replace(workplace, toolbox=self.toolbox)
        self.evaluators: Any = self.toolbox.evaluators
        self.record = workplace.runs / "toy" / RECORD_NAME
        self.junit = folder / "junit.xml"

    def run(self, **changes: Any) -> Any:
        recipe = write_recipe(self.folder, **changes)
        return self.workplace.invoke("run", str(recipe), "--junit", str(self.junit), "--no-github")

    def gate(self, *arguments: str) -> Any:
        return self.workplace.invoke("gate", "toy", "--junit", str(self.junit), "--no-github", *arguments)

    def red(self) -> list[tuple[str, str, str]]:
        """(element, type, message) of all in the JUnit file that is no pass."""
        found = [each for tag in ("failure", "error") for each in ElementTree.parse(self.junit).getroot().iter(tag)]
        return [(each.tag, each.get("type", ""), each.get("message", "")) for each in found]


@pytest.fixture
def toy(tmp_path: Path, empty: Any) -> Toy:
    return Toy(tmp_path, empty)


def test_a_run_without_a_fault_is_0(toy: Toy) -> None:
    assert (toy.run().exit_code, toy.red()) == (0, [])
    assert (toy.gate().exit_code, toy.red()) == (0, [])


# -- 1. a goal that no engine can reach -------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", [{"p90_ms": 0.001}, {"p90_speedup": 100_000.0}])
def test_an_impossible_latency_goal_is_3(toy: Toy, goal: dict[str, float]) -> None:
    ((name, bound),) = goal.items()
    result = toy.run(budgets={"latency": goal})
    assert result.exit_code == 3
    line = next(line for line in result.stdout.splitlines() if line.startswith("missed: compile"))
    assert f"latency.{name}: " in line
    assert f" {bound:g} " in line
    assert [(element, kind) for element, kind, _ in toy.red()] == [("failure", "missed")]
    judged = toy.gate()
    assert judged.exit_code == 3
    assert judged.stdout.startswith(f"MISSED  latency.{name}  ")


# -- 2. a corrupt model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return build_bench(tmp_path_factory.mktemp("bench"), 8)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "gone"])
@pytest.mark.parametrize("command", ["evaluate", "bench", "compile"])
def test_a_corrupt_onnx_file_is_1_and_named(
    bench: Bench, empty: Any, tmp_path: Path, command: str, damage: str
) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    for file in bench.engine.iterdir():
        (engine / file.name).write_bytes(file.read_bytes())
    file = engine / "vision_encoder.onnx"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "noise": bytes(range(256)) * 8}.get(damage, b""))
    if damage == "gone":
        file.unlink()
    out = tmp_path / "out"
    arguments = {
        "evaluate": ["--data", str(bench.task.data), "--outcomes", str(out)],
        "bench": ["--data", str(bench.task.data), "--seconds", "0.2"],
        "compile": ["--out", str(out)],
    }[command]
    result = empty.invoke(command, str(engine), *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "vision_encoder.onnx" in result.stderr
    assert "fault in vlm-edge" not in result.stderr
    assert not out.exists()


def test_an_engine_that_was_damaged_in_the_store_is_made_again(toy: Toy) -> None:
    assert toy.run().exit_code == 0
    before = toy.record.read_bytes()
    for file in (toy.workplace.store / "objects").glob("*/model.txt"):
        file.chmod(0o644)
        file.write_text("damaged\n")
    toy.log.clear()
    assert toy.run().exit_code == 0
    assert {"export", "quantize", "compile"} <= set(toy.log)
    bundles = [(toy.record.parent / "bundle" / "model.txt").read_text(), before.decode()]
    assert "damaged" not in "".join(bundles)
    assert toy.gate().exit_code == 0


def test_a_bundle_that_was_damaged_is_1_and_named(toy: Toy) -> None:
    assert toy.run().exit_code == 0
    (toy.record.parent / "bundle" / "model.txt").write_text("damaged\n")
    result = toy.gate()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "bundle: not what was judged" in result.stderr
    assert [(element, kind) for element, kind, _ in toy.red()] == [("error", "VlmEdgeError")]


# -- 3. an evaluator that raises --------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluator", ["accuracy", "compare", "latency", "footprint", "regressions"])
def test_an_evaluator_that_raises_is_1_named_and_not_cached(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, evaluator: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(toy.evaluators, evaluator, Mock(side_effect=OSError(f"the {evaluator} worker died")))
        result = toy.run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: OSError: the {evaluator} worker died" in result.stderr
    assert not toy.record.exists()
    assert toy.red() == [("error", "OSError", f"OSError: the {evaluator} worker died")]
    log = re.search(r"attach (\S+) to a report", result.stderr)
    assert log is not None
    assert f"the {evaluator} worker died" in Path(log[1]).read_text()
    Path(log[1]).unlink()
    assert toy.gate().exit_code == 1
    assert (toy.run().exit_code, toy.red()) == (0, [])


def test_a_run_that_raises_is_not_taken_for_the_one_before_it(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert toy.run().exit_code == 0
    monkeypatch.setattr(toy.evaluators, "footprint", Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(toy.evaluators, "versions", dict.fromkeys(toy.evaluators.versions, "toy-2"))
    assert toy.run().exit_code == 130
    assert toy.red() == [("error", "KeyboardInterrupt", "KeyboardInterrupt")]
    judged = toy.gate()
    assert judged.exit_code == 1
    assert "the last run did not end" in judged.stderr


# -- 4. a metric that is missing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy_drop_pt", "latency_p90_speedup", "size_ratio"])
def test_a_metric_that_is_missing_is_5_and_named(toy: Toy, metric: str) -> None:
    toy.evaluators.drop = {metric}
    budgets = {"accuracy": {"max_drop_pt": 1.0}, "latency": {"p90_speedup": 3.0}, "size": {"max_ratio": 0.6}}
    result = toy.run(budgets=budgets)
    assert result.exit_code == 5
    line = next(line for line in result.stdout.splitlines() if line.startswith("not measured: compile"))
    assert metric in line
    assert [(element, kind) for element, kind, _ in toy.red()] == [("error", "not_measured")]
    assert metric in toy.red()[0][2]
    judged = toy.gate()
    assert judged.exit_code == 5
    assert metric in judged.stdout
    assert [(element, kind) for element, kind, _ in toy.red()] == [("error", "not_measured")]


def test_a_host_that_can_not_measure_is_5_and_says_why(toy: Toy) -> None:
    toy.evaluators.missing = "the GPU is elsewhere"
    result = toy.run()
    assert result.exit_code == 5
    assert "the GPU is elsewhere" in result.stdout
    assert [element for element, _, _ in toy.red()] == ["error", "error"]
