"""A record judged again, and the change between two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_folders import BUDGETS, measured, write_run

from vlm_edge.core.budget import Budgets, Verdict
from vlm_edge.core.gate import (
    Change,
    Tolerances,
    change_bounds,
    check_comparable,
    find_variant,
    gate,
    gate_of,
    judge_again,
    judge_change,
    judged_percentiles,
    recorded_budgets,
    recorded_target,
)
from vlm_edge.core.record import RunRecord, read_record
from vlm_edge.errors import UsageError, VlmEdgeError


def record_with(tmp_path: Path, **changes: Any) -> RunRecord:
    return read_record(write_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", **changes))


def test_judged_again_is_what_the_run_said(tmp_path: Path) -> None:
    record = record_with(tmp_path)
    variant = find_variant(record, None)
    assert variant.name == "compile"
    assert judge_again(record, variant, recorded_budgets(record, "compile")) == variant.verdicts
    assert gate(record, variant, recorded_budgets(record, "compile")) == gate_of(record)


@pytest.mark.parametrize(
    ("budgets", "verdict"),
    [
        ({"latency": {"p90_speedup": 3.9}}, Verdict.PASS),
        ({"latency": {"p90_speedup": 4.0}}, Verdict.UNDECIDED),
        ({"latency": {"p90_speedup": 4.1}}, Verdict.FAIL),
        ({"latency": {"p99_ms": 4.1}}, Verdict.NOT_MEASURED),
        ({"latency": {"p90_speedup": 4.1, "p99_ms": 4.1}}, Verdict.FAIL),
        ({"latency": {"p90_speedup": 4.0, "p99_ms": 4.1}}, Verdict.NOT_MEASURED),
    ],
)
def test_other_budgets_on_the_same_record(tmp_path: Path, budgets: dict[str, Any], verdict: Verdict) -> None:
    record = record_with(tmp_path)
    found = gate(record, find_variant(record, None), Budgets.model_validate(budgets), recorded=False)
    assert (found.verdict, found.notes) == (verdict, [])
    assert all(each.metric in (each.reason or "") for each in found.judgements if each.verdict is Verdict.NOT_MEASURED)


def test_the_target_s_memory_is_judged_from_the_record(tmp_path: Path) -> None:
    target = {"name": "box", "engine": "onnxruntime"}
    for memory_mb, verdict in ((None, Verdict.PASS), (128, Verdict.PASS), (64, Verdict.FAIL)):
        record = record_with(tmp_path, target={**target, "memory_mb": memory_mb})
        found = gate(record, find_variant(record, None), Budgets.model_validate(BUDGETS), recorded=False)
        assert found.verdict is verdict
        assert ("target.memory_mb" in {each.budget for each in found.judgements}) == (memory_mb is not None)


def test_a_recorded_target_of_an_earlier_version_is_read_and_one_that_is_none_is_refused(tmp_path: Path) -> None:
    target = {"name": "box", "engine": "onnxruntime"}
    record = record_with(tmp_path, target={**target, "device": "cpu"})
    assert recorded_target(record) == recorded_target(record_with(tmp_path, target=target))
    for wrong, place in (
        (["box"], "recipe.target: give a mapping"),
        ({**target, "threads": "2"}, "recipe.target.threads"),
    ):
        recipe = {**record.recipe, "target": wrong}
        with pytest.raises(VlmEdgeError, match=place):
            recorded_target(record.model_copy(update={"recipe": recipe}))


def test_the_run_s_own_control_counts_when_it_is_judged_again(tmp_path: Path) -> None:
    record = record_with(tmp_path, control=1.2)
    (judgement,) = judge_again(
        record, find_variant(record, None), Budgets.model_validate({"latency": {"p90_speedup": 3.9}})
    )
    assert judgement.verdict is Verdict.UNDECIDED
    assert "A/A" in (judgement.reason or "")


def test_a_stage_s_own_budgets_hold_for_its_variant(tmp_path: Path) -> None:
    record = record_with(tmp_path)
    recipe = {**record.recipe, "budgets": {"size": {"max_mb": 1}}}
    record = record.model_copy(update={"recipe": recipe})
    assert recorded_budgets(record, "compile") == Budgets.model_validate(BUDGETS)
    assert recorded_budgets(record, "baseline") == Budgets.model_validate({"size": {"max_mb": 1}})


@pytest.mark.parametrize("recipe", [{"stages": [{}]}, {"stages": 3}, {"budgets": {"speed": 1}}])
def test_budgets_that_can_not_be_read_are_an_error(tmp_path: Path, recipe: dict[str, Any]) -> None:
    record = record_with(tmp_path).model_copy(update={"recipe": recipe})
    with pytest.raises(VlmEdgeError, match="budgets in the record can't be read"):
        recorded_budgets(record, "compile")


def test_a_verdict_that_was_edited_is_noted_and_not_believed(tmp_path: Path) -> None:
    record = record_with(tmp_path, speedup=(2.0, 0.1))
    last = record.variants[-1].model_copy(update={"verdict": Verdict.PASS})
    record = record.model_copy(update={"variants": [record.variants[0], last], "verdict": Verdict.PASS})
    found = gate(record, last, recorded_budgets(record, "compile"))
    assert found.verdict is Verdict.FAIL
    assert found.notes == ["the record says pass; judged again it is fail"]


def test_a_gate_that_judges_nothing_is_not_open(tmp_path: Path) -> None:
    record = record_with(tmp_path, budgets={})
    assert record.verdict is Verdict.PASS
    with pytest.raises(UsageError, match="nothing to judge"):
        gate(record, find_variant(record, None), Budgets())


def test_an_unknown_variant_lists_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'compile'") as raised:
        find_variant(record_with(tmp_path), "compil")
    assert raised.value.hint == "it has baseline, compile"


@pytest.mark.parametrize(
    ("latency", "percentiles"),
    [
        ({}, ["p90"]),
        ({"cold_start_ms": 5}, ["p90"]),
        ({"p50_ms": 5}, ["p50"]),
        ({"p99_ms": 5, "p50_speedup": 2, "p50_ms": 3}, ["p50", "p99"]),
    ],
)
def test_the_slow_down_of_the_percentiles_that_matter(latency: dict[str, float], percentiles: list[str]) -> None:
    assert sorted(judged_percentiles(Budgets.model_validate({"latency": latency}))) == percentiles


def test_every_tolerance_is_a_bound_and_none_leaves_one_out() -> None:
    bounds = {bound.budget: (bound.metric, str(bound)) for bound in change_bounds(Tolerances(), ["p50", "p90"])}
    assert bounds == {
        "against.max_drop_pt": ("accuracy_drop_pt", "<= 0.5"),
        "against.max_slowdown[p50]": ("latency_p50_slowdown", "<= 1.05"),
        "against.max_slowdown[p90]": ("latency_p90_slowdown", "<= 1.05"),
        "against.max_growth": ("size_growth", "<= 1.01"),
        "against.max_memory_growth": ("peak_rss_growth", "<= 1.1"),
    }
    fewer = change_bounds(Tolerances(max_slowdown=None, max_drop_pt=None), ["p90"])
    assert [bound.budget for bound in fewer] == ["against.max_growth", "against.max_memory_growth"]


@pytest.mark.parametrize(
    ("value", "half", "verdict"),
    [(1.0, 0.04, Verdict.PASS), (1.0, 0.06, Verdict.UNDECIDED), (1.2, 0.1, Verdict.FAIL), (1.05, 0.0, Verdict.PASS)],
)
def test_a_change_is_judged_by_its_interval(value: float, half: float, verdict: Verdict) -> None:
    change = Change(measurements=[measured("latency_p90_slowdown", value, half)])
    (judgement,) = judge_change(change, change_bounds(Tolerances(), ["p90"])[1:2])
    assert judgement.verdict is verdict


def test_a_slow_down_finer_than_the_control_is_undecided() -> None:
    found = measured("latency_p90_slowdown", 1.0, 0.01)
    change = Change(measurements=[found], control=[measured("latency_p90_control", 1.0, 0.08)])
    (judgement,) = judge_change(change, change_bounds(Tolerances(), ["p90"])[1:2])
    assert judgement.verdict is Verdict.UNDECIDED


def test_what_could_not_be_compared_keeps_its_reason() -> None:
    change = Change(reasons={"accuracy_drop_pt": "other data"})
    (judgement,) = judge_change(change, change_bounds(Tolerances(), ["p90"])[:1])
    assert (judgement.verdict, judgement.reason) == (Verdict.NOT_MEASURED, "other data")


@pytest.mark.parametrize(
    ("changes", "what"), [({"name": "other"}, "recipes"), ({"task": "classification"}, "task kinds")]
)
def test_runs_of_something_else_are_refused(tmp_path: Path, changes: dict[str, str], what: str) -> None:
    record = record_with(tmp_path)
    check_comparable(record, record)
    with pytest.raises(UsageError, match=f"of different {what}"):
        check_comparable(record, record_with(tmp_path, **changes))
