"""The ladder's variants: what the baseline is where a recipe's first stage has settings that no baseline has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_toolbox import toy_toolbox, write_recipe

from vlm_edge.core.plan import VariantPlan, plan_variants
from vlm_edge.core.recipe import read_recipe


def plan(folder: Path, stages: list[dict[str, Any]], without: frozenset[str] = frozenset()) -> list[VariantPlan]:
    table = dict(toy_toolbox(folder)[0].stages)
    table["export"] = replace(table["export"], baseline={"strength": 1.0})
    return plan_variants(read_recipe(write_recipe(folder, stages=stages), table), table, without=without)


def told(plan: VariantPlan) -> tuple[str, list[tuple[str, Any]]]:
    return plan.name, [(step.spec.name, step.config.model_dump()["strength"]) for step in plan.steps]


HALF = {"export": {"strength": 0.5, "optimize": "mine"}}


def test_the_baseline_has_its_own_settings_and_the_listed_ones_are_a_variant(tmp_path: Path) -> None:
    found = plan(tmp_path, [HALF, {"quantize": {}}])
    assert [told(each) for each in found] == [
        ("baseline", [("export", 1.0), ("compile", 1.0)]),
        ("export", [("export", 0.5), ("compile", 1.0)]),
        ("quantize", [("export", 0.5), ("quantize", 1.0), ("compile", 1.0)]),
    ]
    assert found[0].steps[0].config.model_dump()["optimize"] == "mine"  # its other settings are the recipe's
    assert [each.entry is None for each in found] == [True, False, False]


def test_a_variant_that_was_dropped_leaves_the_baseline_s_stage(tmp_path: Path) -> None:
    last = plan(tmp_path, [HALF, {"quantize": {}}], without=frozenset({"export"}))[-1]
    assert told(last) == ("quantize", [("export", 1.0), ("quantize", 1.0), ("compile", 1.0)])
    assert last.steps[0].config.model_dump()["optimize"] == "mine"


@pytest.mark.parametrize("first", [{"export": {}}, {"export": {"optimize": "mine"}}])
def test_other_settings_are_the_baseline_s_too(tmp_path: Path, first: dict[str, Any]) -> None:
    assert [each.name for each in plan(tmp_path, [first, {"quantize": {}}])] == ["baseline", "quantize"]
