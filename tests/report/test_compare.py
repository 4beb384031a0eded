"""Runs side by side, in every form."""

from __future__ import annotations

import pytest
from report_records import full_record, measured
from terminal import printed

from vlm_edge.core.measurement import Difference
from vlm_edge.core.record import RunRecord
from vlm_edge.report.compare import (
    Compared,
    compare_table,
    compared,
    compared_json,
    difference_text,
    reasons,
    same_text,
)
from vlm_edge.report.html import compare_html
from vlm_edge.report.markdown import compare_markdown


def beside(record: RunRecord, other: RunRecord) -> Compared:
    changes = {
        "accuracy": Difference(measured=measured("accuracy_drop_pt", 0.44, 0.2, 9673, "pt"), how="paired"),
        "latency_p90_ms": Difference(reason="the two runs were measured on other hosts"),
        "latency_p50_ms": Difference(reason="the two runs were measured on other hosts"),
        "f1": Difference(measured=measured("f1_drop_pt", 1, unit="pt"), how="unpaired", reason="no outcomes"),
        "size_bytes": Difference(measured=measured("size_bytes_change", 1.25, 0, 1, "x"), how="exact"),
    }
    sides = [("runs/a", record, record.variants[-1]), ("runs/b", other, other.variants[-1])]
    return compared(sides, [changes])


@pytest.fixture
def comparison(record: RunRecord) -> Compared:
    recipe = {**record.recipe, "stages": [{"name": "quantize", "config": {"samples": 256}}]}
    other = {**record.recipe, "stages": [{"name": "prune"}, {"name": "quantize", "config": {"samples": 512}}]}
    first = full_record(record.model_copy(update={"recipe": recipe}), hostile=False)
    second = full_record(
        record.model_copy(update={"recipe": other, "host": {**record.host, "cores": 64}}), hostile=False
    )
    versions = {**record.versions, "onnxruntime": "1.99.0"}
    return beside(first, second.model_copy(update={"name": "other <b>|run", "versions": versions, "commit": None}))


def test_what_is_not_the_same_is_listed_and_nothing_else(comparison: Compared) -> None:
    assert {row.name: row.values for row in comparison.recipe} == {
        "stages.quantize.config.samples": ("256", "512"),
        "stages.prune": ("-", "none"),
        "order of stages": ("quantize", "prune, quantize"),
    }
    assert [(row.name, row.values) for row in comparison.versions] == [("onnxruntime", ("1.31.1", "1.99.0"))]
    assert [row.name for row in comparison.host] == ["cores"]
    assert same_text(comparison) == ""


def test_runs_that_are_the_same_say_so(record: RunRecord) -> None:
    same = beside(record, record)
    assert same.names == ("runs/a", "runs/b")
    assert same_text(same) == "recipe, versions, host are the same"


def test_differences_in_words(comparison: Compared) -> None:
    changes = {row.metric: row.changes[1] for row in comparison.metrics}
    assert difference_text(changes["accuracy"]) == "drop 0.44 pt [0.24, 0.64], n 9673 (paired)"
    assert difference_text(changes["size_bytes"]) == "1.25 x (exact)"
    assert difference_text(changes["macs"]) == ""
    assert reasons(comparison) == [
        "other <b>|run: not compared: the two runs were measured on other hosts (latency_p50_ms, latency_p90_ms)",
        "other <b>|run: unpaired, not paired: no outcomes (f1)",
    ]


def test_every_form_has_every_metric_and_its_difference(comparison: Compared) -> None:
    table = printed(lambda _: compare_table(comparison), 200)
    forms = {"table": table, "markdown": compare_markdown(comparison), "html": compare_html(comparison)}
    for text in forms.values():
        assert "drop 0.44 pt [0.24, 0.64], n 9673 (paired)" in text
        assert "other hosts" in text
        assert "1.99.0" in text
        assert "stages.quantize.config.samples" in text
    assert "<b>|run" not in forms["html"]
    assert "other &lt;b>\\|run" in forms["markdown"]
    for row in comparison.metrics:
        if "_drop_pt[" not in row.metric and "_ratio[" not in row.metric:
            assert f"| {row.metric} |" in forms["markdown"]


def test_json_has_all_values(comparison: Compared) -> None:
    values = compared_json(comparison)
    assert [run["run"] for run in values["runs"]] == list(comparison.names)
    assert [run["commit"] for run in values["runs"]] == ["c0ffee5f1e-dirty", "unknown"]
    accuracy = next(row for row in values["metrics"] if row["metric"] == "accuracy")
    assert accuracy["changes"][0] is None
    assert accuracy["changes"][1]["how"] == "paired"
    assert len(values["metrics"]) == len(comparison.metrics)
    assert values["versions"] == {"onnxruntime": ["1.31.1", "1.99.0"]}
