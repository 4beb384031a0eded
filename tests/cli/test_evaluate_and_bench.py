from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from color_task import write_color_task
from tiny_graphs import write_vqa

from vlm_edge.core.stage import TaskSpec
from vlm_edge.evaluation.accuracy import evaluate
from vlm_edge.evaluation.latency import LatencySettings
from vlm_edge.evaluation.outcomes import Outcomes


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskSpec:
    """The colour task with its images as test split."""
    folder = tmp_path_factory.mktemp("colors")
    task = write_color_task(folder)
    (folder / "data" / "train").rename(folder / "data" / "test")
    manifest = "name: colors\nkind: vqa\nsource: {folder: data}\nlicence: MIT\nsplits: {test: {from: test}}\n"
    task.data.write_text(manifest)
    return task


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    write_vqa(folder)
    return folder


def test_evaluate_is_the_evaluator_s_accuracy(task: TaskSpec, engine: Path, empty: Any) -> None:
    scores = evaluate(engine, task).scores["accuracy"]
    result = empty.invoke("evaluate", str(engine), "--data", str(task.data), "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    measured = {row["metric"]: row for row in found["measurements"]}
    assert measured["accuracy"]["value"] == pytest.approx(sum(scores) / len(scores))
    assert measured["accuracy"]["n"] == len(scores)
    assert {metric.partition("[")[0] for metric in measured} == {"accuracy"}
    assert found["skipped"] == []


def test_evaluate_against_a_baseline_is_paired(task: TaskSpec, engine: Path, empty: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_vqa(other, seed=4)
    arguments = ["evaluate", str(engine), "--baseline", str(other), "--data", str(task.data), "--json"]
    metrics = {row["metric"] for row in json.loads(empty.invoke(*arguments).stdout)["measurements"]}
    assert {"accuracy", "accuracy_drop_pt"} <= metrics


def test_outcomes_are_kept_sample_by_sample(task: TaskSpec, engine: Path, empty: Any, tmp_path: Path) -> None:
    file = tmp_path / "outcomes.json"
    result = empty.invoke(
        "evaluate", str(engine), "--data", str(task.data), "--limit", "5", "--outcomes", str(file), "--threads", "1"
    )
    assert result.exit_code == 0
    outcomes = Outcomes.model_validate_json(file.read_text())
    assert len(outcomes.predictions) == 5
    rows = [line.split() for line in result.stdout.splitlines()[2:]]
    accuracy = next(row for row in rows if row[0] == "accuracy")
    assert accuracy[1] == f"{100 * sum(outcomes.scores['accuracy']) / 5:.2f}"
    assert accuracy[-2:] == ["5", "%"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measurements that end after two short rounds."""
    brief = {"look_rounds": 2, "round_seconds": 0.01, "warmup_seconds": 0.1, "batch_seconds": 0.0, "cold_starts": 6}
    for name, value in brief.items():
        monkeypatch.setattr(LatencySettings.model_fields[name], "default", value)
    LatencySettings.model_rebuild(force=True)
    yield
    monkeypatch.undo()
    LatencySettings.model_rebuild(force=True)


COMPONENTS = {
    f"latency_p50_ms[{name}]" for name in ("vision_encoder", "text_encoder", "decoder", "preprocessing", "other")
}


@pytest.mark.usefixtures("short")
def test_bench_measures_one_engine(task: TaskSpec, engine: Path, empty: Any) -> None:
    result = empty.invoke("bench", str(engine), "--data", str(task.data), "--seconds", "0.2", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    measured = {row["metric"]: row for row in found["measurements"]}
    assert set(measured) == {"latency_p50_ms", "latency_p90_ms", "peak_rss_mb", *COMPONENTS}
    assert (
        measured["latency_p50_ms"]["low"] <= measured["latency_p50_ms"]["value"] <= measured["latency_p90_ms"]["high"]
    )
    assert found["conditions"]["host"]["cores"] >= 1
    assert found["conditions"]["rounds"] >= 2


@pytest.mark.usefixtures("short")
def test_bench_against_a_baseline_gives_the_speed_up(task: TaskSpec, engine: Path, empty: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_vqa(other, seed=4)
    arguments = ["--baseline", str(other), "--data", str(task.data), "--seconds", "0.2", "--percentile", "50"]
    result = empty.invoke("bench", str(engine), *arguments)
    assert result.exit_code == 0
    metrics = {line.split()[0] for line in result.stdout.splitlines()[2:]}
    assert metrics == {"latency_p50_ms", "latency_p50_speedup", "peak_rss_mb", *COMPONENTS}


@pytest.mark.usefixtures("short")
def test_bench_measures_what_is_asked_for(task: TaskSpec, engine: Path, empty: Any) -> None:
    asked = ["--control", "--batch", "2", "--cold-start", "--price-per-hour", "0.5", "--seconds", "0.2", "--json"]
    result = empty.invoke("bench", str(engine), "--data", str(task.data), *asked)
    assert result.exit_code == 0
    metrics = {row["metric"] for row in json.loads(result.stdout)["measurements"]}
    assert {
        "latency_p50_control",
        "latency_p90_control",
        "cold_start_ms",
        "throughput_per_s",
        "cost_per_1000",
    } <= metrics


def test_bench_is_against_itself_or_another(task: TaskSpec, engine: Path, empty: Any) -> None:
    result = empty.invoke("bench", str(engine), "--data", str(task.data), "--control", "--baseline", str(engine))
    assert result.exit_code == 2
    assert "give one of them" in result.stderr


@pytest.mark.parametrize("command", ["evaluate", "bench"])
def test_data_or_an_engine_that_is_not_there_is_1_and_named(
    task: TaskSpec, engine: Path, empty: Any, command: str, tmp_path: Path
) -> None:
    no_data = empty.invoke(command, str(engine), "--data", "none.yaml")
    no_engine = empty.invoke(command, str(tmp_path), "--data", str(task.data))
    assert (no_data.exit_code, no_engine.exit_code) == (1, 1)
    assert "none.yaml: no such data manifest" in no_data.stderr
    assert "manifest.json" in no_engine.stderr


def test_data_has_to_be_named(engine: Path, empty: Any) -> None:
    result = empty.invoke("evaluate", str(engine))
    assert result.exit_code == 2
    assert "--data" in result.stderr
