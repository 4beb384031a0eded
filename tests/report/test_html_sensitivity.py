"""The part of the page that ranks layers by what each alone costs, and tells of those that stayed float."""

from __future__ import annotations

import re
from typing import Any

import pytest
from report_records import QUANTIZED

from vlm_edge.core.record import RunRecord, VariantRecord
from vlm_edge.report.html import run_html


def interval(value: float) -> dict[str, float]:
    return {"low": value - 0.75, "value": value, "high": value + 0.75}


def ranked(count: int, *, by_task: bool) -> list[dict[str, Any]]:
    """The last is by far the worst for the task, and float in the end."""
    rows: list[dict[str, Any]] = [
        {"name": f"layers.{k}.fc1", "operator": "MatMul", "sqnr_db": 30.0 + k, "float": k == count - 1}
        for k in range(count)
    ]
    for row in rows if by_task else []:
        row["drop_pt"] = interval(60.0 if row["float"] else 0.0)
    return rows


def facts_of(*, by_task: bool, fallback: bool = True, count: int = 15) -> dict[str, Any]:
    """Facts of a quantize run: a ranking, and the last layer left float."""
    last = f"layers.{count - 1}.fc1"
    component = {
        "asked": "int8",
        "scheme": "int8",
        "sensitivity": ranked(count, by_task=by_task),
        "float_layers": [last],
        "float_because": {last: "max_drop_pt"},
    }
    components = {"vision_encoder": component, "decoder": {"asked": "none", "scheme": "none"}}
    facts: dict[str, Any] = {**QUANTIZED, "components": components}
    if fallback:
        left = {"component": "vision_encoder", "name": last, "sqnr_db": 44.0, "without_it": interval(61.25)}
        facts["metric_samples"] = {"split": "train", "images": 1533, "samples": 14_000}
        facts["task_drop"] = {
            "metric": "accuracy_drop_pt",
            "max_drop_pt": 0.5,
            "before": interval(62.5),
            "after": {"low": -0.25, "value": 0.0, "high": 0.25},
            "left_float": [left],
            "tried": [{"left_float": 0, **interval(62.5)}, {"left_float": 1, "low": -0.25, "value": 0.0, "high": 0.25}],
        }
    return facts


def section(record: RunRecord, facts: dict[str, Any]) -> str:
    """The page's section of quantization error, for a run whose quantize stages found these facts."""

    def changed(variant: VariantRecord) -> VariantRecord:
        runs = [each.model_copy(update={"facts": facts}) if each.stage == "quantize" else each for each in variant.runs]
        return variant.model_copy(update={"runs": runs})

    page = run_html(record.model_copy(update={"variants": [changed(each) for each in record.variants]}))
    return page.split('<section id="layers">')[1].split("</section>")[0]


def text_of(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


def test_the_fallback_is_told_with_both_intervals_and_reasons(record: RunRecord) -> None:
    text = text_of(section(record, facts_of(by_task=False)))
    assert "62.50 [61.75, 63.25]" in text
    assert "0.00 [-0.25, 0.25]" in text
    assert "1,533 images of the train split" in text
    assert "layers.14.fc1 vision_encoder 44.0 61.25 [60.50, 62.00]" in text
    assert "float: max_drop_pt" in text


@pytest.mark.parametrize("by_task", [False, True])
def test_the_most_sensitive_comes_first_and_all_are_there(record: RunRecord, by_task: bool) -> None:
    markup = section(record, facts_of(by_task=by_task, fallback=False))
    text = text_of(markup.split("<details>")[0])
    places = [text.find(f"layers.{k}.fc1") for k in range(15)]
    first = 14 if by_task else 0
    assert places[first] == min(place for place in places if place >= 0)
    assert sum(place >= 0 for place in places) == 12
    assert all(f"layers.{k}.fc1" in text_of(markup.split("<details>")[1]) for k in range(15))
    assert ("drop 60.00 points" in markup) == by_task
    assert markup.count("<svg") == 12 + 1 + 15 + 1


def test_a_run_without_a_ranking_has_no_such_part(record: RunRecord) -> None:
    markup = section(record, {**QUANTIZED, "components": {"vision_encoder": {"asked": "int8", "scheme": "int8"}}})
    assert "vision_encoder" in markup
    assert "most sensitive" not in markup
    assert "left in float" not in markup


def test_a_record_of_an_earlier_version_is_read(record: RunRecord) -> None:
    """It has no reasons."""
    component = {"asked": "int8", "scheme": "int8", "sensitivity": ranked(3, by_task=False)}
    rows = {**QUANTIZED, "components": {"x": component}}
    assert "float" in text_of(section(record, rows))
