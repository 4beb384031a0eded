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
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.stages.quantize_config import QuantizeConfig, resolve_schemes

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
each_recipe = pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)


def with_tiny_model(path: Path, folder: Path, model: Path) -> Path:
    """The recipe on a tiny model and on random photos."""
    text = path.read_text(encoding="utf-8")
    kind = re.findall(r"^task: \{kind: (\w+), data: photos\.yaml\}$", text, re.MULTILINE)[0]
    write_photos(folder, kind)
    recipe = folder / path.name
    recipe.write_text(re.sub(r"(?m)^model: .*$", f"model: {model}", text), encoding="utf-8")
    return recipe


def test_every_model_has_a_recipe_for_a_cpu_box_and_one_for_a_jetson() -> None:
    found = {path.stem for path in RECIPES.iterdir()}
    assert found == {f"{name}-{box}" for name in TINY_OF for box in ("cpu", "jetson")}


@each_recipe
def test_it_has_no_fault(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, box = path.stem.rpartition("-")
    tiny = TINY[TINY_OF[name]]
    monkeypatch.chdir(tmp_path)
    recipe = check_recipe(with_tiny_model(path, tmp_path, tiny.write(tmp_path / "model")))
    assert recipe.name == path.stem
    assert recipe.target.engine == ("tensorrt" if box == "jetson" else "onnxruntime")
    components = read_rows()[TINY_OF[name]].components.split(", ")
    for entry in recipe.stages:
        if isinstance(entry.config, QuantizeConfig):
            assert set(entry.config.components) <= {"*", *components}
    assert [entry.stage for entry in recipe.stages] == ["export", "quantize", "compile"]


@pytest.mark.slow
@each_recipe
def test_it_quantizes(
    path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the recipe's schemes, for its target; compiled, too, where that runs here."""
    name = path.stem.rpartition("-")[0]
    tiny = TINY[TINY_OF[name]]
    graphs = exported_once(tmp_path_factory, TINY_OF[name], tiny.write, tiny.model)
    monkeypatch.chdir(tmp_path)
    recipe = check_recipe(with_tiny_model(path, tmp_path, graphs.checkpoint))
    (config,) = (entry.config for entry in recipe.stages if isinstance(entry.config, QuantizeConfig))
    target = recipe.target.name
    settings = config.model_dump() | {"samples": 12}
    facts = run_stage("quantize", settings, graphs.folder, tmp_path / "q", data=recipe.task.data, target=target)
    schemes = resolve_schemes(config, read_manifest(graphs.folder), recipe.target.engine)
    assert set(facts["components"]) == set(schemes)
    if recipe.target.engine == "onnxruntime":
        run_stage("compile", {"optimize": "runtime"}, tmp_path / "q", tmp_path / "engine", target=target)
