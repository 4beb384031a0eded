"""The forecast before a long training: when there is one, what it says, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_toolbox import Config, Evaluators, toy_toolbox, write_recipe

from vlm_edge.core.budget import Verdict
from vlm_edge.core.recipe import read_recipe
from vlm_edge.core.record import RunRecord
from vlm_edge.core.runner import FORECAST_FROM_S, Runner
from vlm_edge.core.stage import SilentProgress, StageInputs, StageWork, TrainingCost
from vlm_edge.core.store import Store
from vlm_edge.errors import VlmEdgeError
from vlm_edge.report.ladder import remarks

TOLD = "student S would be 4x [3.9, 4.1] at p90, against 2x of quantize; an epoch takes about 60 s, training 900 s"
OUT_OF_REACH = {"latency": {"p90_speedup": 5.0}}


class Told(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def remark(self, line: str) -> None:
        self.lines.append(line)


class Bench:
    """Runs the toy recipe, whose prune can be forecast: untrained it writes what it writes trained, marked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "model").mkdir()
        (folder / "model" / "model.txt").write_text("dense\n")
        self.training_s: float | None = 900.0
        self.fault: str | None = None
        self.missing: str | None = None

    def run(self, on_miss: str = "continue", **changes: Any) -> tuple[RunRecord, list[str], list[str]]:
        """The record, what was said, and what ran."""
        toolbox, log = toy_toolbox(self.folder / "model")

        def untrained(_config: Config, inputs: StageInputs, work: StageWork) -> TrainingCost | None:
            log.append("forecast")
            if self.fault is not None:
                raise VlmEdgeError(self.fault)
            (work.out / "model.txt").write_text((inputs.source.path / "model.txt").read_text() + "untrained\n")
            if self.training_s is None:
                return None
            return TrainingCost(of="student S", epoch_s=60, training_s=self.training_s)

        toolbox.stages["prune"] = replace(toolbox.stages["prune"], untrained=untrained)  # type: ignore[index]
        assert isinstance(toolbox.evaluators, Evaluators)
        toolbox.evaluators.missing = self.missing
        stages = [{"export": {}}, {"quantize": {}}, {"prune": {"on_miss": on_miss, **changes}}, {"compile": {}}]
        budgets = {"latency": {"p90_speedup": 1.5}}
        recipe = read_recipe(write_recipe(self.folder, budgets=budgets, stages=stages), toolbox.stages)
        told = Told()
        record = Runner(recipe, toolbox, Store(self.folder / "store"), told).run(self.folder / "runs")
        return record, told.lines, log


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_training_that_can_not_meet_its_latency_is_left_out_with_on_miss_drop(bench: Bench) -> None:
    record, told, log = bench.run("drop", budgets=OUT_OF_REACH)
    reason = f"{TOLD}; it can't meet latency.p90_speedup >= 5"
    assert told == [f"prune: {reason}: it is left out (on_miss: drop)"]
    assert "prune" not in log
    assert log[log.index("forecast") :] == ["forecast", "export", "quantize", "compile", "latency", "compile"]
    prune, last = record.variants[2:]
    assert (prune.dropped, prune.unmeasured, prune.verdict) == (True, f"not trained: {reason}", Verdict.NOT_MEASURED)
    assert (prune.runs, prune.measurements, prune.outcomes) == ([], [], None)
    assert [each.verdict for each in prune.verdicts] == [Verdict.NOT_MEASURED]
    assert "prune" not in last.stages
    assert (record.verdict, record.decided_by) == (Verdict.PASS, "compile")
    assert remarks(record) == [
        f"prune: NOT MEASURED: not trained: {reason}",
        "prune: was left out of later variants (on_miss: drop)",
    ]
    again, told, log = bench.run("drop", budgets=OUT_OF_REACH)
    assert log == []  # the store has the forecast
    assert again.variants[2] == prune
    assert told == [f"prune: {reason}: it is left out (on_miss: drop)"]


@pytest.mark.parametrize(
    ("on_miss", "budgets", "ending"),
    [
        ("continue", OUT_OF_REACH, "; it can't meet latency.p90_speedup >= 5: training starts all the same"),
        ("drop", {"latency": {"p90_speedup": 4.0}}, ""),  # within the interval [3.9, 4.1]
        ("drop", {"latency": {"p90_speedup": 3.0}}, ""),
        ("drop", {"accuracy": {"max_drop_pt": 0.01}, "latency": {"p90_speedup": 3.0}}, ""),  # no accuracy is forecast
    ],
)
def test_else_it_is_said_and_training_goes_on(bench: Bench, on_miss: str, budgets: dict[str, Any], ending: str) -> None:
    record, told, log = bench.run(on_miss, budgets=budgets)
    assert told == [f"prune: {TOLD}{ending}"]
    assert log.index("forecast") < log.index("prune")
    assert record.variants[2].unmeasured is None
    assert "untrained" not in (bench.folder / "runs" / "toy" / "bundle" / "model.txt").read_text()
    _, told, log = bench.run(on_miss, budgets=budgets)
    assert (told, log) == ([], [])  # it is trained


@pytest.mark.parametrize("training_s", [FORECAST_FROM_S - 1, None])
def test_a_short_training_and_one_of_known_worth_are_not_forecast(bench: Bench, training_s: float | None) -> None:
    bench.training_s = training_s
    _, told, log = bench.run("drop", budgets=OUT_OF_REACH)
    assert told == []
    assert log[log.index("forecast") + 1] == "prune"


def test_a_forecast_that_fails_is_said_and_hinders_nothing(bench: Bench) -> None:
    bench.fault = "the layer norm is missing"
    record, told, _ = bench.run("drop")
    assert told == ["prune: no forecast: the layer norm is missing"]
    assert record.verdict is Verdict.PASS


def test_where_nothing_can_be_measured_nothing_is_forecast(bench: Bench) -> None:
    bench.missing = "TensorRT: no libnvinfer"
    _, told, log = bench.run("drop", budgets=OUT_OF_REACH)
    assert told == []
    assert "forecast" not in log
    assert "prune" in log
