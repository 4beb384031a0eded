"""docs/recipe.md: every key is described, its example is a recipe, its faults are the ones reported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_edge.core.budget import Budgets
from vlm_edge.core.recipe import _KEYS, _STAGE_KEYS, read_recipe
from vlm_edge.core.target import Target
from vlm_edge.stages import STAGES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "recipe.md").read_text(encoding="utf-8")
EXAMPLE, FAULTY = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_every_key_is_described() -> None:
    budgets = [
        f"{group}.{key}" for group, field in Budgets.model_fields.items() for key in _budget_model(field).model_fields
    ]
    for key in (*_KEYS, *_STAGE_KEYS, *Target.model_fields, *budgets):
        assert f"`{key}`" in PAGE, key


def _budget_model(field: Any) -> Any:
    return next(model for model in field.annotation.__args__ if model is not type(None))


def test_the_example_is_a_recipe_without_faults(tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(EXAMPLE)
    recipe = read_recipe(path, STAGES, shipped=DOCS.parent)
    assert recipe.name == "quickstart"
    assert set(yaml.safe_load(EXAMPLE)) == set(_KEYS)


def test_the_faults_are_reported_as_the_page_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("faulty.yaml").write_text(FAULTY)
    result = empty.invoke("check", "faulty.yaml")
    shown = PAGE[PAGE.index("$ vlm-edge check faulty.yaml\n") :].split("\n", 1)[1].split("```")[0]
    assert result.exit_code == 2
    assert result.stderr == shown
