"""recipes/models/: each recipe for published weights is checked on a tiny model of the same architecture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from families_page import read_rows
from photo_folders import write_photos
from shared_exports import exported_once
from tiny_families import TINY

from vlm_edge.api import check_recipe, run_stage
from vlm_edge.core.recipe import Recipe
from vlm_edge.stages.quantize_config import QuantizeConfig

RECIPES = Path(__file__).parents[2] / "recipes" / "models"
TINY_OF = {
    "clip-retrieval": "CLIP",
    "siglip-retrieval": "SigLIP",
    "blip-captioning": "BLIP, captions",
    "florence-2": "Florence-2",
    "smolvlm": "Idefics3",
    "qwen2.5-vl": "Qwen2.5-VL",
    "mllama": "Mllama (Llama 3.2 Vision)",
}
"""The row of docs/families.md with the architecture that the published config.json names."""
each_model = pytest.mark.parametrize("name", TINY_OF)


def recipes_of(name: str, folder: Path, model: Path) -> list[Recipe]:
    """The recipes for a CPU box and a Jetson, checked on a tiny model and random photos."""
    found = []
    for box in ("cpu", "jetson"):
        text = (RECIPES / f"{name}-{box}.yaml").read_text(encoding="utf-8")
        if not found:
            write_photos(folder, re.findall(r"^task: \{kind: (\w+), data: photos\.yaml\}$", text, re.MULTILINE)[0])
        recipe = folder / f"{name}-{box}.yaml"
        recipe.write_text(re.sub(r"(?m)^model: .*$", f"model: {model}", text), encoding="utf-8")
        found.append(check_recipe(recipe))
    return found


def schemes_of(recipe: Recipe) -> QuantizeConfig:
    """The settings of the one quantize stage."""
    (config,) = (entry.config for entry in recipe.stages if isinstance(entry.config, QuantizeConfig))
    return config


def test_every_model_has_a_recipe_for_a_cpu_box_and_one_for_a_jetson() -> None:
    found = {path.stem for path in RECIPES.iterdir()}
    assert found == {f"{name}-{box}" for name in TINY_OF for box in ("cpu", "jetson")}


@each_model
def test_both_have_no_fault(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cpu, jetson = recipes_of(name, tmp_path, TINY[TINY_OF[name]].write(tmp_path / "model"))
    assert (cpu.name, cpu.target.engine) == (f"{name}-cpu", "onnxruntime")
    assert (jetson.name, jetson.target.engine) == (f"{name}-jetson", "tensorrt")
    components = read_rows()[TINY_OF[name]].components.split(", ")
    for recipe in (cpu, jetson):
        assert set(schemes_of(recipe).components) <= {"*", *components}
        assert [entry.stage for entry in recipe.stages] == ["export", "quantize", "compile"]


@pytest.mark.slow
@each_model
def test_both_quantize_as_they_say(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For their targets; compiled, too, where that runs here."""
    tiny = TINY[TINY_OF[name]]
    graphs = exported_once(tmp_path_factory, TINY_OF[name], tiny.write, tiny.model)
    monkeypatch.chdir(tmp_path)
    for recipe in recipes_of(name, tmp_path, graphs.checkpoint):
        settings = schemes_of(recipe).model_dump() | {"samples": 12}
        out, target = tmp_path / recipe.name, recipe.target.name
        facts = run_stage("quantize", settings, graphs.folder, out, data=recipe.task.data, target=target)
        assert set(facts["components"]) == set(graphs.manifest.components)
        if recipe.target.engine == "onnxruntime":
            run_stage("compile", {"optimize": "runtime"}, out, tmp_path / "engine", target=target)
