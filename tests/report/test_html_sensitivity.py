"""The part of the page that ranks layers by what each alone costs, and tells of those that stayed float."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vlm_edge.core.record import StageRun
from vlm_edge.report.html_sensitivity import sensitivity_part


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


def run(*, by_task: bool, fallback: bool = True, count: int = 15) -> StageRun:
    last = f"layers.{count - 1}.fc1"
    component = {
        "scheme": "int8",
        "sensitivity": ranked(count, by_task=by_task),
        "float_layers": [last],
        "float_because": {last: "max_drop_pt"},
    }
    facts: dict[str, Any] = {"components": {"vision_encoder": component, "decoder": {"scheme": "none"}}}
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
    return StageRun(
        stage="quantize",
        config={},
        key="a" * 64,
        digest="d" * 64,
        kind="GRAPHS",
        cached=False,
        implied=False,
        wall_s=1.0,
        facts=facts,
    )


def text_of(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


def test_the_fallback_is_told_with_both_intervals_and_reasons() -> None:
    text = text_of(sensitivity_part(run(by_task=False)))
    assert "62.50 [61.75, 63.25]" in text
    assert "0.00 [-0.25, 0.25]" in text
    assert "1,533 images of the train split" in text
    assert "layers.14.fc1 vision_encoder 44.0 61.25 [60.50, 62.00]" in text
    assert "float: max_drop_pt" in text


@pytest.mark.parametrize("by_task", [False, True])
def test_the_most_sensitive_comes_first_and_all_are_there(by_task: bool) -> None:
    markup = sensitivity_part(run(by_task=by_task, fallback=False))
    text = text_of(markup.split("<details>")[0])
    places = [text.find(f"layers.{k}.fc1") for k in range(15)]
    first = 14 if by_task else 0
    assert places[first] == min(place for place in places if place >= 0)
    assert sum(place >= 0 for place in places) == 12
    assert all(f"layers.{k}.fc1" in text_of(markup.split("<details>")[1]) for k in range(15))
    assert ("drop 60.00 points" in markup) == by_task
    assert markup.count("<svg") == 12 + 1 + 15 + 1


def test_a_run_without_a_ranking_has_no_such_part() -> None:
    bare = run(by_task=False, fallback=False, count=1)
    facts = {"components": {"vision_encoder": {"scheme": "int8"}}}
    assert sensitivity_part(bare.model_copy(update={"facts": facts})) == ""


def test_a_record_of_an_earlier_version_is_read() -> None:
    """It has no reasons."""
    old = run(by_task=False, fallback=False, count=3)
    rows = {"components": {"x": {"scheme": "int8", "sensitivity": ranked(3, by_task=False)}}}
    assert "float" in text_of(sensitivity_part(old.model_copy(update={"facts": rows})))
