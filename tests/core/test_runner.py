from __future__ import annotations

import errno
import gzip
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
from toy_toolbox import Evaluators, toy_toolbox, write_recipe

from vlm_edge.core.budget import Budgets, Verdict
from vlm_edge.core.gate import judge_again, recorded_budgets
from vlm_edge.core.measurement import Timing
from vlm_edge.core.plan import expected_seconds, plan_variants
from vlm_edge.core.recipe import Checks, read_recipe
from vlm_edge.core.record import RunRecord, read_record
from vlm_edge.core.runner import Runner
from vlm_edge.core.stage import SilentProgress, StageSpec, TaskSpec
from vlm_edge.core.store import Store, key_of
from vlm_edge.errors import RecipeError, VlmEdgeError


class Bench:
    """A folder with a model, a recipe and a store; ``run`` runs the recipe with changes and logs what ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "model.txt").write_text("dense\n")
        self.evaluators_missing: str | None = None
        self.drop: set[str] = set()
        self.seconds: float | None = None
        self.peak_mb: float | None = None
        self.on_gpu = False
        self.stages: dict[str, StageSpec] = {}
        self.log: list[str] = []

    def runner(self, *, remeasure: bool = False, patience_s: float = 300.0, **changes: Any) -> Runner:
        toolbox, self.log = toy_toolbox(self.model)
        toolbox = replace(toolbox, stages={**toolbox.stages, **self.stages})
        assert isinstance(toolbox.evaluators, Evaluators)
        toolbox.evaluators.missing, toolbox.evaluators.drop = self.evaluators_missing, self.drop
        toolbox.evaluators.seconds, toolbox.evaluators.peak_mb = self.seconds, self.peak_mb
        toolbox.evaluators.on_gpu = self.on_gpu
        recipe = read_recipe(write_recipe(self.folder, **changes), toolbox.stages)
        store = Store(self.folder / "store")
        return Runner(recipe, toolbox, store, SilentProgress(), Timing(remeasure, patience_s))

    def run(self, **changes: Any) -> RunRecord:
        return self.runner(**changes).run(self.folder / "runs")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def model_of(bench: Bench, record: RunRecord, variant: str) -> list[str]:
    artifacts = next(v for v in record.variants if v.name == variant).artifacts
    return (bench.folder / "store" / "objects" / artifacts["engine"] / "model.txt").read_text().split()


def test_a_model_level_stage_is_lowered_again_by_every_graph_stage_so_far(bench: Bench) -> None:
    record = bench.run()
    assert [v.name for v in record.variants] == ["baseline", "quantize", "prune", "compile"]
    assert model_of(bench, record, "baseline") == ["dense", "export(1)", "compile(1)"]
    assert model_of(bench, record, "prune") == ["dense", "prune(0.5)", "export(1)", "quantize(1)", "compile(1)"]
    assert record.verdict is Verdict.PASS
    assert record.best == "compile"
    assert (bench.folder / "runs" / "toy" / "bundle" / "model.txt").read_text().split()[-1] == "compile(1)"
    assert read_record(bench.folder / "runs" / "toy") == record


def test_the_second_run_does_nothing_and_gives_the_same(bench: Bench) -> None:
    first = bench.run()
    second = bench.run()
    assert bench.log == []
    assert [v.artifacts for v in second.variants] == [v.artifacts for v in first.variants]
    assert [v.measurements for v in second.variants] == [v.measurements for v in first.variants]
    assert all(run.cached for v in second.variants for run in v.runs)


def test_a_changed_budget_recomputes_nothing(bench: Bench) -> None:
    bench.run()
    record = bench.run(budgets={"latency": {"p90_speedup": 100000}})
    assert bench.log == []
    assert record.verdict is Verdict.FAIL
    (verdict,) = record.variants[-1].verdicts
    assert (verdict.budget, verdict.metric, verdict.bound) == (
        "latency.p90_speedup",
        "latency_p90_speedup",
        ">= 100000",
    )
    assert verdict.measured is not None


def test_the_target_s_memory_bounds_what_an_engine_takes_and_measures_nothing_again(bench: Bench) -> None:
    bench.peak_mb = 100.0
    target, stages = {"name": "toy", "engine": "onnxruntime"}, [{"export": {}}, {"compile": {"waive": ["memory"]}}]
    record = bench.run(target=target, stages=stages)
    assert "target.memory_mb" not in {each.budget for each in record.variants[-1].verdicts}
    for memory_mb, verdict in ((128, Verdict.PASS), (101, Verdict.UNDECIDED), (64, Verdict.FAIL)):
        record = bench.run(target={**target, "memory_mb": memory_mb}, stages=stages, budgets={})
        assert (bench.log, record.verdict) == ([], verdict)
        judged = record.variants[-1].verdicts[-1]
        assert (judged.budget, judged.metric, judged.bound) == ("target.memory_mb", "peak_rss_mb", f"<= {memory_mb}")
        assert judge_again(record, record.variants[-1], Budgets())[0] == judged
    bench.peak_mb = None
    record = bench.run(target={**target, "memory_mb": 128, "threads": 1}, stages=stages)
    assert record.variants[-1].verdicts[-1].verdict is Verdict.NOT_MEASURED


def test_a_gpu_s_memory_is_not_taken_for_measured(bench: Bench) -> None:
    bench.peak_mb, bench.on_gpu = 100.0, True
    record = bench.run(target={"name": "toy", "engine": "tensorrt", "memory_mb": 8192})
    (judged,) = (each for each in record.variants[-1].verdicts if each.budget == "target.memory_mb")
    assert judged.verdict is Verdict.NOT_MEASURED
    assert judged.reason is not None
    assert "GPU" in judged.reason
    assert judge_again(record, record.variants[-1], Budgets()) == [judged]


def test_a_changed_price_prices_the_throughput_that_was_measured(bench: Bench) -> None:
    target, budgets = {"name": "toy", "engine": "onnxruntime"}, {"cost": {"max_per_1000": 0.02}}
    for price, verdict in ((None, Verdict.NOT_MEASURED), (0.72, Verdict.PASS), (7.2, Verdict.FAIL)):
        record = bench.run(target={**target, "price_per_hour": price}, budgets=budgets)
        assert record.variants[-1].verdict is verdict
        found = {each.metric: each.value for each in record.variants[-1].measurements}
        assert found.get("cost_per_1000") == (None if price is None else pytest.approx(1000 / 20 * price / 3600))
        assert price is None or bench.log == []


def test_a_budget_on_the_tail_alone_measures_latency_again(bench: Bench) -> None:
    bench.run()
    record = bench.run(budgets={"latency": {"p99_ms": 30.0}})
    assert set(bench.log) == {"latency"}
    assert record.verdict is Verdict.PASS


def test_a_changed_stage_recomputes_what_follows_from_it_alone(bench: Bench) -> None:
    bench.run()
    bench.run(stages=[{"export": {}}, {"quantize": {}}, {"prune": {"strength": 0.25}}, {"compile": {}}])
    assert [entry for entry in bench.log if entry in ("export", "quantize", "prune")] == ["prune", "export", "quantize"]


def test_until_met_stops_at_the_first_variant_that_meets_every_budget(bench: Bench) -> None:
    record = bench.run(run="until-met", budgets={"latency": {"p90_speedup": 1.5}})
    assert [v.name for v in record.variants] == ["baseline", "quantize"]
    assert record.decided_by == "quantize"


def test_on_miss_stop_ends_the_run_and_drop_leaves_the_stage_out(bench: Bench) -> None:
    tight = {"accuracy": {"max_drop_pt": 0.01}}
    stopped = bench.run(stages=[{"quantize": {"budgets": tight, "on_miss": "stop"}}, {"prune": {}}])
    assert (stopped.decided_by, stopped.verdict) == ("quantize", Verdict.FAIL)
    dropped = bench.run(
        stages=[{"quantize": {"budgets": tight, "on_miss": "drop"}}, {"prune": {}}],
        budgets={"accuracy": {"max_drop_pt": 1.0}},
    )
    assert [v.dropped for v in dropped.variants] == [False, True, False]
    assert model_of(bench, dropped, "prune") == ["dense", "prune(1)", "export(1)", "compile(1)"]
    assert dropped.verdict is Verdict.PASS


def test_an_engine_that_this_host_lacks_is_not_measured(bench: Bench) -> None:
    bench.evaluators_missing = "TensorRT: no libnvinfer"
    record = bench.run()
    assert record.verdict is Verdict.NOT_MEASURED
    assert record.variants[-1].unmeasured == "TensorRT: no libnvinfer"
    assert record.best is None
    assert all(verdict.verdict is Verdict.NOT_MEASURED for verdict in record.variants[-1].verdicts)


def test_an_engine_that_is_built_here_and_run_elsewhere_is_made_and_not_measured(bench: Bench) -> None:
    bench.evaluators_missing = "no NVIDIA driver is installed"
    runner = bench.runner()
    assert isinstance(runner.toolbox.evaluators, Evaluators)
    runner.toolbox.evaluators.builds = True
    record = runner.run(bench.folder / "runs")
    assert record.verdict is Verdict.NOT_MEASURED
    assert record.variants[-1].unmeasured == "no NVIDIA driver is installed"
    assert model_of(bench, record, "compile")[-1].startswith("compile")
    assert "accuracy" not in bench.log


def test_a_build_kit_s_accuracy_can_miss_a_budget_but_not_keep_one(bench: Bench) -> None:
    """It is another engine's, on the same graphs; no time is measured, and no size."""
    bench.evaluators_missing = "no NVIDIA driver is installed"
    runner = bench.runner()
    evaluators = runner.toolbox.evaluators
    assert isinstance(evaluators, Evaluators)
    evaluators.builds, evaluators.emulator = True, "emulated: toy ran the kit's graphs"
    record = runner.run(bench.folder / "runs")
    last = record.variants[-1]
    assert (last.unmeasured, last.emulated) == ("no NVIDIA driver is installed", "emulated: toy ran the kit's graphs")
    assert (record.verdict, record.best) == (Verdict.NOT_MEASURED, None)
    judged = {each.budget: each for each in last.verdicts}
    assert judged["accuracy.max_drop_pt"].measured is not None
    assert judged["accuracy.max_drop_pt"].verdict is Verdict.NOT_MEASURED
    assert judged["accuracy.max_drop_pt"].reason == f"{last.emulated}; {last.unmeasured}"
    assert judged["latency.p90_speedup"].reason == last.unmeasured
    assert "latency" not in bench.log
    assert not [each.metric for each in last.measurements if each.metric.startswith(("latency", "size"))]
    assert bench.log[-1] == f"kit of {record.name}"
    tight = Budgets.model_validate({"accuracy": {"max_drop_pt": 0.01}})
    assert [each.verdict for each in judge_again(record, last, tight)] == [Verdict.FAIL]
    assert judge_again(record, last, recorded_budgets(record, last.name)) == last.verdicts


def test_an_engine_that_was_made_where_it_can_not_run_is_made_again_where_it_can(bench: Bench) -> None:
    bench.evaluators_missing = "no NVIDIA driver is installed"
    runner = bench.runner()
    assert isinstance(runner.toolbox.evaluators, Evaluators)
    runner.toolbox.evaluators.builds = True
    runner.run(bench.folder / "runs")
    bench.evaluators_missing = None
    bench.log.clear()
    assert bench.run().verdict is Verdict.PASS
    assert set(bench.log) == {"compile", "accuracy", "latency"}


def test_without_a_budget_what_was_not_measured_is_no_pass(bench: Bench) -> None:
    bench.evaluators_missing = "TensorRT: no libnvinfer"
    assert bench.run(budgets={}).verdict is Verdict.NOT_MEASURED


def test_a_metric_that_the_evaluation_left_out_is_named_and_no_pass(bench: Bench) -> None:
    bench.drop = {"accuracy_drop_pt"}
    record = bench.run()
    assert record.verdict is Verdict.NOT_MEASURED
    missing = [each.reason for each in record.variants[-1].verdicts if each.verdict is Verdict.NOT_MEASURED]
    assert missing == ["the evaluation gave no accuracy_drop_pt"]


def test_what_the_control_can_not_tell_apart_is_undecided(bench: Bench) -> None:
    runner = bench.runner(budgets={"latency": {"p90_speedup": 3.5}})
    assert isinstance(runner.toolbox.evaluators, Evaluators)
    runner.toolbox.evaluators.noises = [0.2]
    judged = runner.run(bench.folder / "runs").variants[-1].verdicts[0]
    assert judged.measured is not None
    assert judged.measured.low > 3.5
    assert judged.verdict is Verdict.UNDECIDED
    assert "A/A control" in (judged.reason or "")
    assert bench.run(budgets={"latency": {"p90_speedup": 3.0}}).verdict is Verdict.PASS


def test_a_control_taken_again_belongs_to_the_variant_it_was_in_the_way_of(bench: Bench) -> None:
    runner = bench.runner(budgets={"latency": {"p90_speedup": 3.5}})
    evaluators = runner.toolbox.evaluators
    assert isinstance(evaluators, Evaluators)
    evaluators.noises = [0.5, 0.01]  # of the baseline, and of the control that the last variant gets
    record = runner.run(bench.folder / "runs")
    assert [v.verdict.value for v in record.variants] == ["fail", "fail", "pass", "pass"]
    controls = [[m.high for m in v.measurements if m.metric == "latency_p90_control"] for v in record.variants]
    assert controls == [[1.5], [1.01], [1.01], [1.01]]
    again = judge_again(record, record.variants[2], Budgets.model_validate({"latency": {"p90_speedup": 3.5}}))
    assert [each.verdict for each in again] == [Verdict.PASS]


def test_latencies_are_measured_again_on_request(bench: Bench) -> None:
    bench.run()
    before = bench.log.count("latency")
    bench.run()
    assert bench.log == []
    bench.run(remeasure=True)
    assert bench.log == ["latency"] * before


def test_an_open_latency_is_measured_again_with_more_patience_alone(bench: Bench) -> None:
    bench.seconds = 300.0
    open_one = {"budgets": {"latency": {"p90_speedup": 4.0}}, "patience_s": 300.0}  # 4 +- 0.1
    assert bench.run(**open_one).variants[-1].verdict is Verdict.UNDECIDED
    bench.run(**open_one)
    assert bench.log == []
    bench.run(**open_one | {"patience_s": 600.0})
    assert set(bench.log) == {"latency"}
    bench.run(**open_one | {"patience_s": 600.0, "budgets": {"latency": {"p90_speedup": 3.0}}})
    assert bench.log == []


@pytest.mark.parametrize(
    ("changes", "capped"),
    [
        ({"stages": [{"quantize": {}}, {"prune": {}}]}, [60, 300]),
        ({"stages": [{"quantize": {}}, {"prune": {}}], "run": "until-met"}, [300]),
        ({"stages": [{"quantize": {"on_miss": "drop"}}, {"prune": {}}]}, [300, 300]),
        ({"stages": [{"quantize": {}}, {"prune": {"on_miss": "drop"}}]}, [300, 300]),
        ({"stages": [{"quantize": {}}, {"prune": {}}, {"prune": {"on_miss": "drop"}}]}, [60, 300, 300]),
    ],
)
def test_an_open_verdict_on_which_nothing_depends_gets_a_fifth_of_the_patience(
    bench: Bench, changes: dict[str, Any], capped: list[int]
) -> None:
    runner = bench.runner(**changes)
    plans = [plan for plan in plan_variants(runner.recipe, runner.toolbox.stages) if plan.entry is not None]
    assert [runner.open_s(plan) for plan in plans][: len(capped)] == capped
    runner.run(bench.folder / "runs")
    evaluators: Any = runner.toolbox.evaluators
    assert evaluators.open_s[-len(capped) :] == capped


def test_outcomes_regressions_and_conditions_are_kept_with_the_run(bench: Bench) -> None:
    record = bench.run()
    folder = bench.folder / "runs" / "toy"
    for variant in record.variants:
        assert variant.outcomes == f"outcomes/{variant.name}.json.gz"
        outcomes = json.loads(gzip.decompress((folder / variant.outcomes).read_bytes()))
        assert outcomes["skipped"] == []
        assert variant.conditions == {"load": [0.5], "on_gpu": False}
    lost = json.loads((folder / "regressions.json").read_text())
    assert lost["baseline"] == []
    assert lost["compile"][0]["candidate"] == "blue"
    assert record.commit == "c0ffee"


def raising(*_: Any, **__: Any) -> None:
    raise VlmEdgeError("the worker died")


def test_an_interrupted_run_hides_the_record_of_the_run_before_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    runner = bench.runner(stages=[{"prune": {"strength": 3}}])
    monkeypatch.setattr(runner.toolbox.evaluators, "latency", raising)
    with pytest.raises(VlmEdgeError, match="the worker died"):
        runner.run(bench.folder / "runs")
    folder = bench.folder / "runs" / "toy"
    record = read_record(folder)
    assert (record.incomplete, record.verdict, record.best) == ("the worker died", Verdict.NOT_MEASURED, None)
    assert [variant.name for variant in record.variants] == ["baseline"]  # whose measurements were in the store
    assert json.loads((folder / "run.previous.json").read_text())["verdict"] == "pass"


def test_a_run_that_ends_late_keeps_what_it_measured_marked_incomplete(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = bench.runner()
    shown: list[RunRecord] = []
    folder = bench.folder / "runs" / "toy"

    def measured(record: RunRecord) -> None:
        assert read_record(folder) == record
        shown.append(record)
        if len(record.variants) == 2:
            monkeypatch.setattr(runner.toolbox.evaluators, "latency", raising)

    with pytest.raises(VlmEdgeError, match="the worker died"):
        runner.run(bench.folder / "runs", measured)
    assert [record.incomplete for record in shown] == ["it was started, and did not end"] * 2
    record = read_record(folder)
    assert (record.incomplete, record.verdict) == ("the worker died", Verdict.NOT_MEASURED)
    assert [variant.name for variant in record.variants] == ["baseline", "quantize"]
    assert {path.name for path in (folder / "outcomes").iterdir()} == {f"{v.name}.json.gz" for v in record.variants}
    assert set(json.loads((folder / "regressions.json").read_text())) == {"baseline", "quantize"}
    assert not (folder / "bundle").exists()
    whole = bench.run()
    assert (whole.incomplete, whole.verdict) == (None, Verdict.PASS)
    assert whole.variants[:2] == [
        v.model_copy(update={"runs": [run.model_copy(update={"cached": True}) for run in v.runs]})
        for v in record.variants[:2]
    ]
    assert not (folder / "run.previous.json").exists()  # an incomplete record is no run before this one


def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on(bench: Bench) -> None:
    prune = toy_toolbox(bench.model)[0].stages["prune"]

    def full(config: Any, inputs: Any, work: Any) -> None:
        prune.run(config, inputs, work)
        raise OSError(errno.ENOSPC, "No space left on device")

    bench.stages = {"prune": replace(prune, run=full)}
    runner = bench.runner()
    bench.stages = {}
    with pytest.raises(OSError, match=r"No space left on device: .*/scratch/"):
        runner.run(bench.folder / "runs")
    assert [v.name for v in read_record(bench.folder / "runs" / "toy").variants] == ["baseline", "quantize"]
    store = Store(bench.folder / "store")
    assert all(store.find(record.key) is not None for record in store.records())
    assert bench.run().verdict is Verdict.PASS


def test_two_runs_of_one_name_take_turns(bench: Bench) -> None:
    write_recipe(bench.folder)
    script = (
        "from pathlib import Path; import toy_toolbox as t\n"
        "from vlm_edge.core.recipe import Checks, read_recipe; from vlm_edge.core.runner import Runner\n"
        "from vlm_edge.core.stage import SilentProgress; from vlm_edge.core.store import Store\n"
        f"f = Path({str(bench.folder)!r}); box, log = t.toy_toolbox(f / 'model')\n"
        "Runner(read_recipe(f / 'toy.yaml', box.stages), box, Store(f / 'store'), SilentProgress()).run(f / 'runs')\n"
        "print(len(log))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    worked = sorted(int(each.communicate()[0]) for each in both)
    assert [each.returncode for each in both] == [0, 0]
    assert worked[0] == 0 < worked[1]
    assert read_record(bench.folder / "runs" / "toy").verdict is Verdict.PASS


def test_the_plan_says_what_the_store_has(bench: Bench) -> None:
    assert not any(row.cached for row in bench.runner().planned())
    assert bench.log == []
    bench.run()
    rows = bench.runner().planned()
    assert all(row.cached for row in rows)
    assert [(row.variant, row.stage, row.implied) for row in rows[:4]] == [
        ("baseline", "export", False),
        ("baseline", "compile", True),
        ("quantize", "export", False),
        ("quantize", "quantize", False),
    ]


def test_the_plan_says_how_long_the_like_of_a_stage_run_took(bench: Bench) -> None:
    runner = bench.runner()
    assert all(row.seconds is None for row in runner.planned())
    bench.run()
    took = {row.stage: row.seconds for row in bench.runner().planned()}
    assert all(seconds is not None for seconds in took.values())
    (prune,) = (record for record in runner.store.records() if record.identity["stage"] == "prune")
    other = prune.model_copy(update={"identity": {**prune.identity, "config": {"strength": 2.0}}, "wall_s": 20.0})
    steps = plan_variants(runner.recipe, runner.toolbox.stages)[2].steps
    step = next(step for step in steps if step.spec.name == "prune")
    mine = prune.model_copy(update={"wall_s": 5.0})
    assert expected_seconds(step, []) is None
    assert expected_seconds(step, [mine, other]) == 5.0  # of the same settings before the latest
    assert expected_seconds(step, [other]) == 20.0


@pytest.mark.parametrize("stage", ["export", "quantize", "prune", "compile"])
def test_a_run_killed_in_any_stage_goes_on_to_the_same_artifacts(bench: Bench, tmp_path: Path, stage: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    expected = Bench(other).run()
    write_recipe(bench.folder)
    script = (
        "import sys; from pathlib import Path; import toy_toolbox as t\n"
        "from vlm_edge.core.recipe import Checks, read_recipe; from vlm_edge.core.runner import Runner\n"
        "from vlm_edge.core.stage import SilentProgress; from vlm_edge.core.store import Store\n"
        f"f = Path({str(bench.folder)!r}); box, _ = t.toy_toolbox(f / 'model')\n"
        "Runner(read_recipe(f / 'toy.yaml', box.stages), box, Store(f / 'store'), SilentProgress()).run(f / 'runs')\n"
    )
    environment = {**os.environ, "KILL_IN": stage, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    store = Store(bench.folder / "store")
    assert all(store.find(record.key) is not None for record in store.records())
    if (bench.folder / "runs" / "toy" / "run.json").exists():
        assert read_record(bench.folder / "runs" / "toy").incomplete == "it was started, and did not end"
    record = bench.run()
    assert record.incomplete is None
    assert [v.artifacts for v in record.variants] == [v.artifacts for v in expected.variants]
    assert [v.verdicts for v in record.variants] == [v.verdicts for v in expected.variants]


def test_a_record_that_can_not_be_read_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 1}')
    with pytest.raises(VlmEdgeError, match=r"run.json: format: the record is of format 1, this version reads 2"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(VlmEdgeError, match=r"run.json: invalid JSON"):
        read_record(tmp_path)


def test_budgets_are_held_against_the_data_once_and_again_where_a_stage_sets_its_own(bench: Bench) -> None:
    toolbox, _ = toy_toolbox(bench.model)
    asked: list[float | None] = []

    def check(_: TaskSpec, budgets: Budgets) -> list[tuple[str, str]]:
        assert budgets.accuracy is not None
        asked.append(budgets.accuracy.max_drop_pt)
        return [("accuracy.max_drop_pt", "too fine")] if budgets.accuracy.max_drop_pt == 0.5 else []

    checks = Mock(spec=Checks, budgets=check, target=lambda target: (target, []))
    read_recipe(write_recipe(bench.folder), toolbox.stages, checks=checks)
    assert asked == [1.0]
    stages = [{"export": {}}, {"quantize": {"budgets": {"accuracy": {"max_drop_pt": 0.5}}}}]
    with pytest.raises(RecipeError) as error:
        read_recipe(write_recipe(bench.folder, stages=stages), toolbox.stages, checks=checks)
    assert error.value.faults == ["toy.yaml: stages[1].quantize.budgets.accuracy.max_drop_pt: too fine"]


@pytest.mark.parametrize("value", [None, [1], {"measurements": [{"metric": "latency_p90_ms"}]}, {"measurements": 1}])
def test_a_cached_measurement_of_another_form_is_taken_again(bench: Bench, value: Any) -> None:
    first = bench.run()
    folder = bench.folder / "store" / "measurements"
    for file in folder.glob("*.json"):
        content = {**json.loads(file.read_text())["content"], "value": value}
        if content["identity"]["measure"] == "accuracy" and isinstance(value, dict):
            continue  # a mapping, of which only the evaluators know more
        file.write_text(json.dumps({"sha256": key_of(content), "content": content}))
    second = bench.run()
    assert [v.measurements for v in second.variants] == [v.measurements for v in first.variants]
    assert "latency" in bench.log


class Refusing:
    """A preflight that counts its calls, and fails where told to."""

    version = "toy-1"

    def __init__(self, log: list[str], fails: bool) -> None:
        self.log, self.fails = log, fails

    def __call__(
        self, checkpoint: Path, engine: Path, task: TaskSpec, progress: Any, **trusted: bool
    ) -> dict[str, Any]:
        assert (checkpoint / "model.txt").read_text() == "dense\n"
        assert (engine / "model.txt").read_text().split() == ["dense", "export(1)", "compile(1)"]
        self.log.append("preflight")
        if self.fails:
            raise VlmEdgeError("icon.png: other pixels")
        return {"compared": 1}


def test_the_preflight_comes_before_anything_is_judged_and_once(bench: Bench) -> None:
    runner = bench.runner()
    runner.toolbox = replace(runner.toolbox, preflight=Refusing(bench.log, fails=True))
    with pytest.raises(VlmEdgeError, match=r"icon\.png"):
        runner.run(bench.folder / "runs")
    assert bench.log == ["export", "compile", "preflight"]
    for expected in (1, 0):
        runner = bench.runner()
        runner.toolbox = replace(runner.toolbox, preflight=Refusing(bench.log, fails=False))
        runner.run(bench.folder / "runs")
        assert bench.log.count("preflight") == expected
