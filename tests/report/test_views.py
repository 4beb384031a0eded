from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_records import COMPONENTS, full_record

from vlm_edge.core.record import RunRecord
from vlm_edge.errors import VlmEdgeError
from vlm_edge.report.views import (
    component_times,
    control_of,
    flat,
    layer_rows,
    quantize_run,
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


def test_components_controls_and_layers(record: RunRecord) -> None:
    full = full_record(record)
    assert tuple(component_times(full.variants[1])) == COMPONENTS
    assert component_times(record.variants[1]) == {}
    assert [found.metric for found in control_of(full)] == ["latency_p50_control", "latency_p90_control"]
    run = quantize_run(full.variants[-1])
    assert run is not None
    rows = layer_rows(run)
    assert len(rows) == 15
    assert rows[0].worst_db == 20.75
    assert quantize_run(full.variants[0]) is None


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
    for text, message in (("{", "not JSON"), ("[]", "not a mapping"), ('{"prune": 3}', "not a mapping")):
        file.write_text(text)
        with pytest.raises(VlmEdgeError, match=message):
            read_regressions(tmp_path)
