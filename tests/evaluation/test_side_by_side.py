"""What two runs differ by: paired where both kept outcomes of the same data, and said to be unpaired where not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from run_folders import HOST, measured, outcomes_of, scores_with, write_run
from scipy import stats

from vlm_edge.core.gate import find_variant
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import read_record
from vlm_edge.evaluation.change import Side, differences
from vlm_edge.evaluation.comparison import compare


def wilson(right: int, total: int) -> Measurement:
    low, high = stats.binomtest(right, total).proportion_ci(method="wilson")
    return Measurement(metric="accuracy", low=low, value=right / total, high=high, n=total, unit="share")


def side(folder: Path, extra: Sequence[Measurement] = (), **settings: Any) -> Side:
    write_run(folder, weights=folder.name.encode(), **settings)
    record = read_record(folder)
    variant = find_variant(record, None)
    found = [*variant.measurements, *extra]
    return Side(record, variant.model_copy(update={"measurements": found}), folder)


def test_a_task_metric_is_paired_sample_by_sample(tmp_path: Path) -> None:
    before, after = scores_with(380, 20, seed=1), scores_with(360, 40, seed=2)
    first = side(tmp_path / "a", [wilson(380, 400)], scores=before)
    second = side(tmp_path / "b", [wilson(360, 400)], scores=after)
    found = differences(first, second)["accuracy"]
    assert (found.how, found.reason) == ("paired", None)
    paired = compare(outcomes_of(before, "a" * 64), outcomes_of(after, "b" * 64), second.record.seed)
    assert found.measured == next(each for each in paired if each.metric == "accuracy_drop_pt")
    assert found.measured is not None
    assert found.measured.value == pytest.approx(5.0)


def test_other_data_is_compared_unpaired_and_said_to_be(tmp_path: Path) -> None:
    first = side(tmp_path / "a", [wilson(56, 70)], data="1" * 64)
    second = side(tmp_path / "b", [wilson(48, 80)], data="2" * 64)
    found = differences(first, second)["accuracy"]
    assert found.how == "unpaired"
    assert found.reason is not None
    assert "evaluated on other data" in found.reason
    assert found.measured is not None
    # Newcombe 1998, table II, column (a): 56/70 less 48/80, method 10, without continuity correction
    assert found.measured.value == pytest.approx(20.0)
    assert (found.measured.low, found.measured.high) == pytest.approx((5.24, 33.39), abs=0.005)


def test_a_run_without_outcomes_is_compared_unpaired(tmp_path: Path) -> None:
    first, second = (side(tmp_path / name, [wilson(380, 400)]) for name in "ab")
    (tmp_path / "a" / "outcomes" / "compile.json.gz").unlink()
    found = differences(first, second)["accuracy"]
    assert found.how == "unpaired"
    assert "keep the whole folder" in (found.reason or "")


def test_latency_goes_through_the_same_baseline(tmp_path: Path) -> None:
    first, second = side(tmp_path / "a", speedup=(4.0, 0.04)), side(tmp_path / "b", speedup=(2.0, 0.02))
    found = differences(first, second)["latency_p90_ms"]
    assert found.how == "same baseline"
    assert found.measured is not None
    assert found.measured.value == pytest.approx(2.0)
    assert found.measured.low < 2.0 < found.measured.high


def test_another_baseline_is_compared_unpaired(tmp_path: Path) -> None:
    first, second = side(tmp_path / "a"), side(tmp_path / "b", baseline_engine="c" * 64)
    found = differences(first, second)["latency_p90_ms"]
    assert found.how == "unpaired"
    assert found.measured is not None
    assert found.measured.value == pytest.approx(1.0)
    width = math.hypot(math.log(2.6 / 2.5), math.log(2.5 / 2.4))
    assert found.measured.high == pytest.approx(math.exp(width))


def test_times_of_other_hosts_are_not_compared_and_sizes_are(tmp_path: Path) -> None:
    first = side(tmp_path / "a", [measured("latency_p50_ms[decoder]", 2.0, 0.1, unit="ms")])
    more = [measured("latency_p50_ms[decoder]", 1.0, 0.1, unit="ms")]
    second = side(tmp_path / "b", more, host={**HOST, "cpu": "Other CPU"}, size=500_000)
    found = differences(first, second)
    for metric in ("latency_p90_ms", "latency_p50_ms[decoder]", "peak_rss_mb"):
        assert found[metric].measured is None
        assert "Other CPU" in (found[metric].reason or "")
    assert found["size_bytes"].how == "exact"
    assert found["size_bytes"].measured is not None
    assert found["size_bytes"].measured.value == 0.5


def test_what_one_run_lacks_and_what_is_derived_has_no_difference(tmp_path: Path) -> None:
    first, second = side(tmp_path / "a"), side(tmp_path / "b", [measured("macs", 3e9, n=1)])
    found = differences(first, second)
    assert set(found) == {"latency_p90_ms", "size_bytes", "peak_rss_mb"}
