"""What changed between two runs, from their records and outcomes."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import HOST, measured, outcomes_of, scores_with, write_run
from tiny_bench import build_bench

from vlm_edge.core.gate import Change, find_variant
from vlm_edge.core.measurement import LatencyAsked, Measurement, Timed
from vlm_edge.core.record import read_record
from vlm_edge.core.stage import Progress, SilentProgress, TaskSpec
from vlm_edge.core.target import Target
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation import host
from vlm_edge.evaluation.change import (
    HOST_KEYS,
    Side,
    change_between,
    check_bundle,
    engine_of,
    joined,
    measured_again,
)
from vlm_edge.evaluation.comparison import compare
from vlm_edge.evaluation.latency import Bench, LatencySettings, measure_latency


def side(folder: Path) -> Side:
    record = read_record(folder)
    return Side(record, find_variant(record, None), folder)


def change(tmp_path: Path, before: dict[str, Any], after: dict[str, Any]) -> Change:
    earlier = side(write_run(tmp_path / "before", **{"weights": b"before", **before}))
    later = side(write_run(tmp_path / "after", **{"weights": b"after", **after}))
    return change_between(earlier, later, ["p90"])


def named(found: Change, metric: str) -> Measurement:
    return next(each for each in found.measurements if each.metric == metric)


def test_accuracy_is_paired_sample_by_sample(tmp_path: Path) -> None:
    before, after = scores_with(380, 20, seed=1), scores_with(360, 40, seed=2)
    found = named(change(tmp_path, {"scores": before}, {"scores": after}), "accuracy_drop_pt")
    assert found.value == pytest.approx(5.0)
    expected = compare(outcomes_of(before, "x"), outcomes_of(after, "y"))
    assert found == next(each for each in expected if each.metric == "accuracy_drop_pt")
    assert found.low < 5.0 < found.high


def test_the_same_engine_has_lost_exactly_nothing(tmp_path: Path) -> None:
    found = change(tmp_path, {"weights": b"one"}, {"weights": b"one", "speedup": (4.3, 0.1)})
    for metric, value in (("accuracy_drop_pt", 0.0), ("latency_p90_slowdown", 1.0), ("size_growth", 1.0)):
        assert (named(found, metric).low, named(found, metric).high) == (value, value)


def test_a_slow_down_is_the_earlier_speed_up_over_the_later(tmp_path: Path) -> None:
    found = named(change(tmp_path, {"speedup": (4.0, 0.2)}, {"speedup": (3.6, 0.1)}), "latency_p90_slowdown")
    assert found.value == pytest.approx(4.0 / 3.6)
    assert (4.0 - 0.2) / (3.6 + 0.1) < found.low < found.value < found.high < (4.0 + 0.2) / (3.6 - 0.1)


def test_the_interval_of_the_slow_down_is_that_of_two_independent_speed_ups(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    before, after = (generator.normal(value, 0.02 * value, 4000) for value in (4.0, 3.6))
    edges = np.quantile(before / after, (0.025, 0.975))
    half = 1.96 * 0.02
    found = change(tmp_path, {"speedup": (4.0, 4.0 * half)}, {"speedup": (3.6, 3.6 * half)})
    interval = named(found, "latency_p90_slowdown")
    assert (interval.low, interval.high) == (pytest.approx(edges[0], rel=0.01), pytest.approx(edges[1], rel=0.01))


def test_both_runs_controls_count(tmp_path: Path) -> None:
    (control,) = change(tmp_path, {"control": 1.02}, {"control": 1.03}).control
    assert control.metric == "latency_p90_control"
    assert (control.low, control.high) == (pytest.approx(0.98 * 0.97), pytest.approx(1.02 * 1.03))
    assert change(tmp_path / "none", {}, {}).control == []


def test_size_and_memory_are_ratios(tmp_path: Path) -> None:
    found = change(tmp_path, {"size": 1_000_000, "rss": 100.0}, {"size": 1_020_000, "rss": 130.0})
    assert named(found, "size_growth").value == pytest.approx(1.02)
    assert named(found, "peak_rss_growth").value == pytest.approx(1.3)


OTHER_CPU = {**HOST, "cpu": "Another CPU"}
OTHER_ENGINE = {**HOST, "packages": {"onnxruntime": "1.30.0", "numpy": "2.4.6"}}
FOUR_THREADS = {"name": "toy", "engine": "onnxruntime", "threads": 4}


@pytest.mark.parametrize(
    ("before", "missing", "reason"),
    [
        ({"data": "e" * 64}, {"accuracy_drop_pt"}, "other data: eeeeeeeeeeee and dddddddddddd"),
        ({"scores": (1.0,) * 399}, {"accuracy_drop_pt"}, "399 samples"),
        ({"host": OTHER_CPU}, {"latency_p90_slowdown", "peak_rss_growth"}, "cpu: Another CPU / Toy CPU"),
        ({"host": OTHER_ENGINE}, {"latency_p90_slowdown", "peak_rss_growth"}, "onnxruntime: 1.30.0 / 1.31.1"),
        (
            {"target": {"name": "toy", "engine": "onnxruntime", "threads": 4}},
            {"latency_p90_slowdown", "peak_rss_growth"},
            "threads",
        ),
        ({"baseline_engine": "a" * 64}, {"latency_p90_slowdown"}, "another baseline engine"),
        (
            {"unmeasured": "the GPU is elsewhere"},
            {"accuracy_drop_pt", "latency_p90_slowdown", "size_growth", "peak_rss_growth"},
            "the GPU is elsewhere",
        ),
    ],
)
def test_what_can_not_be_compared_has_a_reason_and_no_number(
    tmp_path: Path, before: dict[str, Any], missing: set[str], reason: str
) -> None:
    found = change(tmp_path, before, {})
    assert set(found.reasons) == missing
    assert all(reason in each for each in found.reasons.values())
    assert not missing & {each.metric for each in found.measurements}


def test_a_target_of_another_name_is_the_same_target(tmp_path: Path) -> None:
    """Neither the memory nor the price of a device changes how fast an engine is on it."""
    target = {"name": "other", "description": "as the toy", "engine": "onnxruntime", "threads": 2}
    target |= {"memory_mb": 512, "price_per_hour": 2.0}
    assert change(tmp_path, {"target": target}, {}).reasons == {}


def test_outcomes_that_were_not_kept_are_a_reason_and_damaged_ones_an_error(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "before", weights=b"x"), write_run(tmp_path / "after")
    file = before / "outcomes" / "compile.json.gz"
    whole = file.read_bytes()
    file.unlink()
    found = change_between(side(before), side(after), ["p90"])
    assert "keep the whole folder of a run" in found.reasons["accuracy_drop_pt"]
    for damaged in (whole[:-20], b"no gzip at all", whole[:10] + b"\x00" * 40 + whole[50:], b"[" * 10**6):
        file.write_bytes(damaged)
        with pytest.raises(VlmEdgeError, match=r"compile\.json\.gz: damaged"):
            change_between(side(before), side(after), ["p90"])
    for content, fault in ((b"[" * 10**6, "it is nested too deeply"), (b'{"task": 5}', "task: input should be ")):
        file.write_bytes(gzip.compress(content))
        with pytest.raises(VlmEdgeError, match=rf"compile\.json\.gz: damaged: {fault}"):
            change_between(side(before), side(after), ["p90"])


def test_outcomes_that_decompress_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = write_run(tmp_path / "before", weights=b"x"), write_run(tmp_path / "after")
    monkeypatch.setattr("vlm_edge.evaluation.change.MOST_OUTCOMES_BYTES", 2**20)
    (before / "outcomes" / "compile.json.gz").write_bytes(gzip.compress(b" " * (2**20 + 1)))
    with pytest.raises(VlmEdgeError, match=r"compile\.json\.gz: damaged: it is larger than 1 MiB"):
        change_between(side(before), side(after), ["p90"])


def test_outcomes_of_another_engine_are_an_error(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "before", weights=b"x"), write_run(tmp_path / "after")
    (before / "outcomes" / "compile.json.gz").replace(after / "outcomes" / "compile.json.gz")
    with pytest.raises(VlmEdgeError, match="of another engine"):
        change_between(side(after), side(after), ["p90"])


def test_the_host_s_fingerprint_is_made_of_the_same_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = host.host_record()
    seen: set[str] = set()

    class Watched(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            seen.add(key)
            return super().__getitem__(key)

    monkeypatch.setattr(host, "host_record", lambda: Watched(whole))
    host.host_fingerprint()
    assert seen == {*HOST_KEYS, "packages"}


def test_a_bundle_that_has_changed_since_is_not_what_was_judged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    check_bundle(read_record(run), run)
    (run / "bundle" / "model.onnx").write_bytes(b"other weights")
    with pytest.raises(VlmEdgeError, match="not what was judged"):
        check_bundle(read_record(run), run)


def test_an_engine_is_found_in_the_bundle_or_the_store_only_if_it_is_intact(tmp_path: Path) -> None:
    run = side(write_run(tmp_path / "run"))
    assert engine_of(run, None) == run.folder / "bundle"
    (run.folder / "bundle" / "model.onnx").write_bytes(b"other weights")
    store = tmp_path / "store"
    kept = store / "objects" / (run.engine or "") / "model.onnx"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"damaged")
    with pytest.raises(VlmEdgeError, match="neither its bundle nor in the store"):
        engine_of(run, store)
    kept.write_bytes(b"weights")
    assert engine_of(run, store) == kept.parent


class TwoEngines:
    """The later engine takes 1.25 times as long as the earlier one."""

    def latency(
        self,
        baseline: Path,
        candidate: Path,
        task: TaskSpec,
        target: Target,
        asked: LatencyAsked,
        progress: Progress,
    ) -> Timed:
        assert asked.percentiles == (0.5, 0.99)
        if baseline == candidate:
            found = [measured(f"latency_{each}_control", 1.0, 0.01) for each in ("p50", "p99")]
        else:
            found = [measured(f"latency_{each}_speedup", 0.8, 0.01) for each in ("p50", "p99")]
        return Timed(measurements=[*found, measured("latency_p50_ms", 5.0)])


def test_measured_again_turns_the_speed_up_round_and_adds_the_control(tmp_path: Path) -> None:
    task = TaskSpec(kind="vqa", data=tmp_path / "toy.yaml")
    target = Target.model_validate({"name": "toy", "engine": "onnxruntime"})
    found = measured_again(
        tmp_path / "before", tmp_path / "after", task, target, TwoEngines(), ["p50", "p99"], SilentProgress()  # type: ignore[arg-type]
    )  # fmt: skip
    assert [each.metric for each in found.control] == ["latency_p50_control", "latency_p99_control"]
    for percentile in ("p50", "p99"):
        slowdown = named(found, f"latency_{percentile}_slowdown")
        assert slowdown.value == pytest.approx(1.25)
        assert (slowdown.low, slowdown.high) == (pytest.approx(1 / 0.81), pytest.approx(1 / 0.79))


class ShortMeasurements:
    """What measures engines, for a second."""

    def latency(
        self,
        baseline: Path,
        candidate: Path,
        task: TaskSpec,
        target: Target,
        asked: LatencyAsked,
        progress: Progress,
        **_: Any,
    ) -> Timed:
        settings = LatencySettings(look_rounds=2, round_seconds=0.1, seconds=0.1, patience=60, warmup_seconds=0.1)
        return measure_latency(baseline, candidate, Bench(task, target.threads, asked, settings))


def test_a_percentile_that_measuring_did_not_give_has_a_reason(tmp_path: Path) -> None:
    class NoTail(TwoEngines):
        def latency(self, *arguments: Any) -> Timed:  # type: ignore[override]
            timed = super().latency(*arguments)
            return Timed(measurements=[each for each in timed.measurements if "p99" not in each.metric])

    task = TaskSpec(kind="vqa", data=tmp_path / "toy.yaml")
    target = Target.model_validate({"name": "toy", "engine": "onnxruntime"})
    evaluators: Any = NoTail()
    found = measured_again(tmp_path, tmp_path / "after", task, target, evaluators, ["p50", "p99"], SilentProgress())
    assert set(found.reasons) == {"latency_p99_slowdown"}
    assert "too few queries" in found.reasons["latency_p99_slowdown"]


def test_two_engines_are_measured_in_turns_on_this_host(tmp_path: Path) -> None:
    bench = build_bench(tmp_path, 4)
    target = Target.model_validate({"name": "toy", "engine": "onnxruntime", "threads": 1})
    evaluators: Any = ShortMeasurements()
    found = measured_again(bench.engine, bench.other, bench.task, target, evaluators, ["p50"], SilentProgress())
    slowdown = named(found, "latency_p50_slowdown")
    assert 0 < slowdown.low <= slowdown.value <= slowdown.high
    assert slowdown.n > 4
    assert "latency_p50_control" in {each.metric for each in found.control}
    assert found.reasons == {}


def test_what_was_measured_now_replaces_a_reason() -> None:
    first = Change(reasons={"latency_p90_slowdown": "another host", "accuracy_drop_pt": "other data"})
    found = joined([first, Change(measurements=[measured("latency_p90_slowdown", 1.0)])])
    assert found.reasons == {"accuracy_drop_pt": "other data"}
    assert math.isclose(named(found, "latency_p90_slowdown").value, 1.0)
