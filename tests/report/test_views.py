from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_records import COMPONENTS, full_record

from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord
from vlm_edge.errors import VlmEdgeError
from vlm_edge.report.views import (
    at_one_load,
    component_times,
    control_of,
    flat,
    last_quantized,
    layer_rows,
    metrics_of,
    read_regressions,
    shared_conditions,
    slice_name,
    task_rows,
)


def test_slices_and_metrics_are_kept_apart(record: RunRecord) -> None:
    full = full_record(record)
    variant = full.variants[2]
    assert [slice_name(row) for row in task_rows(full, variant, slices=True)] == ["slice 0", "slice 1", "slice 2"]
    rows = {row.metric: row for row in task_rows(full, variant, slices=False)}
    assert list(rows) == ["accuracy", "f1", "exact_match"]
    assert rows["f1"].drop is not None
    assert rows["f1"].drop.value == 2.0
    assert rows["f1"].baseline is not None
    assert rows["f1"].baseline.value == 0.8123
    assert rows["exact_match"].drop is None


def test_variants_measured_under_another_load_are_shown_as_in_one_sitting(record: RunRecord) -> None:
    """A baseline at 87 ms on a busy host, and a student at 8.5 ms in a quiet minute, where it is 1.8 times as fast."""

    def ms(value: float, metric: str = "latency_p90_ms") -> Measurement:
        return Measurement(metric=metric, low=value - 1, value=value, high=value + 1, n=100, unit="ms")

    fast = Measurement(metric="latency_p90_speedup", low=1.6, value=1.8, high=2.0, n=64, unit="x")
    first = record.variants[0].model_copy(update={"measurements": [ms(87.0)], "verdicts": []})
    student = record.variants[1].model_copy(
        update={"measurements": [ms(8.5), fast, ms(3.4, "latency_p90_ms[decoder]")], "verdicts": []}
    )
    mixed = record.model_copy(update={"variants": [first, student]})
    shown = at_one_load(mixed)[student.name]
    found = shown["latency_p90_ms"]
    assert (found.low, found.value, found.high) == pytest.approx((87 / 2.0, 87 / 1.8, 87 / 1.6))
    assert found.n == 64
    assert shown["latency_p90_ms[decoder]"].value == pytest.approx(3.4 * 87 / 1.8 / 8.5)  # its share of a query stays
    assert at_one_load(mixed)[first.name]["latency_p90_ms"] == ms(87.0)
    assert at_one_load(mixed, but={"latency_p90_ms"})[student.name]["latency_p90_ms"] == ms(8.5)
    assert metrics_of(student)["latency_p90_ms"] == ms(8.5)  # the record keeps what was measured


def test_components_controls_and_layers(record: RunRecord) -> None:
    full = full_record(record)
    assert tuple(component_times(metrics_of(full.variants[1]))) == COMPONENTS
    assert component_times(metrics_of(record.variants[1])) == {}
    assert [found.metric for found in control_of(full)] == ["latency_p50_control", "latency_p90_control"]
    found = last_quantized(full)
    assert found is not None
    rows = layer_rows(found[1])
    assert len(rows) == 15
    assert rows[0].worst_db == 20.75
    assert last_quantized(full.model_copy(update={"variants": full.variants[:1]})) is None


def test_conditions_that_are_the_same_are_told_once(record: RunRecord) -> None:
    shared, own = shared_conditions(full_record(record, hostile=False))
    assert shared == [("threads", "2"), ("throttled", "no"), ("blocks.count", "17")]
    assert own["prune"] == [("load", "1.5, 2.5")]


def test_nested_facts_become_lines() -> None:
    values = {
        "a": {"b": [1, 2.50], "c": None},
        "d": [{"x": True}],
        "e": {},
        "f": [],
        "g": [[0, 1], [0, 1]],
        "h": [[0], [1]],
    }
    assert flat(values) == [
        ("a.b", "1, 2.5"),
        ("a.c", "-"),
        ("d.0.x", "yes"),
        ("e", "none"),
        ("f", "none"),
        ("g", "0, 1 (2 times)"),
        ("h", "0; 1"),
    ]


def test_regressions_are_read_or_refused(tmp_path: Path) -> None:
    assert read_regressions(tmp_path) == {}
    file = tmp_path / "regressions.json"
    file.write_text(json.dumps({"prune": [{"id": "1"}]}))
    assert read_regressions(tmp_path) == {"prune": [{"id": "1"}]}
    for text, message in (("{", "can.t be read as JSON"), ("[]", "not a mapping"), ('{"prune": 3}', "not a mapping")):
        file.write_text(text)
        with pytest.raises(VlmEdgeError, match=message):
            read_regressions(tmp_path)
