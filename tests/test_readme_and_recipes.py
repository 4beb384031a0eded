"""What the README shows is what there is, and every shipped recipe and target passes its check."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from vlm_edge.api import check_recipe, find_target
from vlm_edge.cli.main import main

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


def test_the_readme_commands_exist_with_their_options() -> None:
    lines = re.findall(r"^\$ (vlm-edge .*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        command, *arguments = shlex.split(line)[1:]
        shown = CliRunner().invoke(main, [command, "--help"])
        assert shown.exit_code == 0, f"{line}: no such command"
        for option in (argument for argument in arguments if argument.startswith("-")):
            assert option in shown.output, f"{line}: {command} has no {option}"


def test_the_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []
