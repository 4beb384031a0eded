from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_edge.cli import doctor
from vlm_edge.cli.init import _scalar
from vlm_edge.core.recipe import read_recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_recipe_for(empty: Any, model: Path, *arguments: str) -> Any:
    return empty.invoke("init", str(model), "--data", "calibration/easy-vqa.yaml", *arguments)


def test_init_writes_a_recipe_without_faults(here: Path, empty: Any, tiny_blip: Path) -> None:
    from vlm_edge.api import shipped_folder
    from vlm_edge.stages import STAGES

    result = write_recipe_for(empty, tiny_blip, "-o", "my recipe.yaml")
    assert (result.exit_code, result.exception) == (0, None)
    recipe = read_recipe(here / "my recipe.yaml", STAGES, shipped=shipped_folder())
    assert recipe.name == "my-recipe"
    assert recipe.model == str(tiny_blip)
    assert recipe.task.kind == "vqa"
    assert recipe.target.name == "cpu-ort"
    assert [entry.stage for entry in recipe.stages] == ["export", "quantize", "prune", "compile"]


def test_init_leaves_out_what_the_model_can_not_do(here: Path, empty: Any, tiny_clip: Path) -> None:
    data = "calibration/easy-vqa-zero-shot.yaml"
    result = empty.invoke("init", str(tiny_clip), "--data", data, "--name", "clip")
    assert result.exit_code == 0
    recipe = yaml.safe_load((here / "recipe.yaml").read_text())
    assert recipe["name"] == "clip"
    assert recipe["task"] == {"kind": "classification", "data": data}
    assert [next(iter(stage)) for stage in recipe["stages"]] == ["export", "quantize", "compile"]


def test_init_writes_a_recipe_for_a_captioner(here: Path, empty: Any, tiny_captioner: Path) -> None:
    no_data = empty.invoke("init", str(tiny_captioner))
    assert no_data.exit_code == 1
    assert "a manifest of kind captioning" in no_data.stderr
    assert empty.invoke("init", str(tiny_captioner), "--data", "captions.yaml").exit_code == 0
    recipe = yaml.safe_load((here / "recipe.yaml").read_text())
    assert recipe["task"] == {"kind": "captioning", "data": "captions.yaml"}
    assert [next(iter(stage)) for stage in recipe["stages"]] == ["export", "quantize", "prune", "compile"]


def test_init_overwrites_nothing_unasked(here: Path, empty: Any, tiny_blip: Path) -> None:
    (here / "recipe.yaml").write_text("mine\n")
    refused = write_recipe_for(empty, tiny_blip)
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert (here / "recipe.yaml").read_text() == "mine\n"
    assert write_recipe_for(empty, tiny_blip, "--force").exit_code == 0
    assert "name: recipe" in (here / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cpu-otr"], "unknown target 'cpu-otr'; did you mean 'cpu-ort'?"),
        (["--task", "vqaa"], "can't do the task 'vqaa'; did you mean 'vqa'?"),
    ],
)
def test_init_names_what_it_does_not_know(
    here: Path, empty: Any, tiny_blip: Path, arguments: list[str], message: str
) -> None:
    result = write_recipe_for(empty, tiny_blip, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (here / "recipe.yaml").exists()


def test_init_asks_for_data_and_for_a_model_that_is_there(here: Path, empty: Any, tiny_blip: Path) -> None:
    no_data = empty.invoke("init", str(tiny_blip))
    no_model = write_recipe_for(empty, here / "none")
    assert (no_data.exit_code, no_model.exit_code) == (1, 1)
    assert "no data to calibrate and measure on" in no_data.stderr
    assert "none: no such folder" in no_model.stderr


@pytest.mark.parametrize("text", ["zoo:blip-easyvqa", "org/model@main", "1.5", "yes", "a: b", "a #b", "ünï", "{}", "-"])
def test_what_a_user_gives_reads_back_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"key: {_scalar(text)}\n") == {"key": text}


def test_zoo_lists_models_and_sizes(empty: Any) -> None:
    listing = json.loads(empty.invoke("zoo", "list", "--json").stdout)
    assert [row["name"] for row in listing["models"]] == ["zoo:blip-easyvqa", "zoo:clip-easyvqa"]
    assert "base" in listing["sizes"]["blip-vqa"]
    plain = empty.invoke("zoo")
    assert plain.exit_code == 0
    assert plain.stdout == empty.invoke("zoo", "list").stdout
    assert "zoo:blip-easyvqa" in plain.stdout


def test_zoo_creates_a_checkpoint(here: Path, empty: Any, tiny_clip: Path) -> None:
    result = empty.invoke("zoo", "create", "clip", "--size", "tiny", "--seed", "1", "--json")
    assert result.exit_code == 0
    created = here / json.loads(result.stdout)["out"]
    assert created == here / "clip-tiny"
    assert (created / "model.safetensors").read_bytes() == (tiny_clip / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("clipp", "tiny", "did you mean 'clip'?"), ("clip", "vit-b-23", "did you mean 'vit-b-32'")],
)
def test_zoo_names_near_matches(empty: Any, name: str, size: str, message: str) -> None:
    result = empty.invoke("zoo", "create", name, "--size", size)
    assert result.exit_code == 1
    assert message in result.stderr


def test_doctor_finds_this_installation_able(empty: Any) -> None:
    result = empty.invoke("doctor", "--json")
    assert result.exit_code == 0
    checks = {(row["section"], row["name"]): row for row in json.loads(result.stdout)}
    assert checks["Packages", "numpy"]["status"] in ("ok", "note")
    assert checks["Engines", "onnxruntime"]["status"] == "ok"
    assert checks["Engines", "tensorrt"]["status"] in ("ok", "absent")
    assert ("Machine", "threads") in checks
    assert len(checks) == len(json.loads(result.stdout))
    lines = empty.invoke("doctor").stdout.splitlines()
    assert "Engines" in lines


def test_doctor_is_1_when_nothing_could_run(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_numpy(name: str) -> str:
        if name == "numpy":
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", without_numpy)
    result = empty.invoke("doctor", "--json")
    assert result.exit_code == 1
    checks = {row["name"]: row for row in json.loads(result.stdout)}
    assert checks["numpy"]["status"] == "broken"


def test_doctor_names_the_tested_version_where_it_differs(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "tested_versions", lambda: {"numpy": "0.1"})
    checks = {row["name"]: row for row in json.loads(empty.invoke("doctor", "--json").stdout)}
    assert checks["numpy"]["status"] == "note"
    assert checks["numpy"]["detail"].endswith("; tested with 0.1")


def test_the_tested_versions_are_those_of_constraints_txt() -> None:
    tested = doctor.tested_versions()
    assert tested["torch"] == "2.13.0"
    assert "tensorrt" not in tested


def test_doctor_says_that_the_hub_is_offline(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checks = {row["name"]: row for row in json.loads(empty.invoke("doctor", "--json").stdout)}
    assert checks["downloads"]["status"] == "note"
