"""The README shows the recipe that ships, and every shipped recipe and target passes its check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlm_edge.api import check_recipe, find_target

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
TARGETS = sorted((ROOT / "recipes" / "targets").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_passes_its_check(path: Path) -> None:
    assert check_recipe(path).name == path.stem


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_every_shipped_target_is_found_by_its_name(path: Path) -> None:
    assert find_target(path.stem).name == path.stem


def test_the_readme_shows_the_quickstart_recipe_as_it_is() -> None:
    shown = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert shown == [(ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")]
