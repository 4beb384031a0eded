"""``check`` holds a recipe's stages against the model and the user's own photos, before anything runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from photo_folders import write_part

ROW = {"question": "what color is it", "answer": "blue"}
PAGE = Path(__file__).parents[2] / "docs" / "measuring.md"


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with 200 photos to test on and 12 to train on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_part(tmp_path / "photos" / "test", [ROW], 200, seed=1)
    write_part(tmp_path / "photos" / "train", [ROW], 12, seed=2)
    return tmp_path / "photos"


def check(empty: Any, stages: list[Any], splits: tuple[str, ...] = ("calibration", "train"), **changes: Any) -> Any:
    parts = {"test": {"from": "test"}, **{split: {"from": "train"} for split in splits}}
    manifest = {"name": "own", "kind": "vqa", "source": {"folder": "photos"}, "licence": "own", "splits": parts}
    Path("data.yaml").write_text(json.dumps(manifest))
    recipe = {"name": "r", "model": "zoo:blip-easyvqa", "task": {"kind": "vqa", "data": "data.yaml"}}
    Path("r.yaml").write_text(json.dumps({**recipe, "target": "cpu-ort", "stages": stages, **changes}))
    return empty.invoke("check", "--json", "r.yaml")


def faults(result: Any) -> list[str]:
    assert result.exit_code == 2
    found: list[str] = json.loads(result.stdout)["faults"]
    return found


def test_a_split_that_a_stage_reads_is_missed_by_its_place(empty: Any) -> None:
    prune = {"prune": {"cross_attention": {"heads": 0.5}}}
    cut = {"prune": {"cross_attention": {"heads": 0.5}, "recover": None}}
    stages = ["export", {"quantize": {"max_drop_pt": 5}}, prune, cut, {"distill": {}}]
    assert faults(check(empty, stages, splits=())) == [
        "r.yaml: stages[1].quantize: it reads the split calibration; data.yaml has: test",
        "r.yaml: stages[2].prune: it reads the split calibration; data.yaml has: test",
        "r.yaml: stages[2].prune: it reads the split train; data.yaml has: test",
        "r.yaml: stages[3].prune: it reads the split calibration; data.yaml has: test",
        "r.yaml: stages[4].distill: it reads the split train; data.yaml has: test",
    ]
    assert check(empty, ["export", "compile"], splits=()).exit_code == 0


def test_what_a_model_can_not_do_is_told_from_its_outline(empty: Any) -> None:
    stages = ["export", {"prune": {"cross_attention": {"heads": 0.5}}}, {"distill": {}}]
    task = {"kind": "classification", "data": "calibration/easy-vqa-zero-shot.yaml"}
    assert faults(check(empty, stages, model="zoo:clip-easyvqa", task=task)) == [
        "r.yaml: stages[1].prune: CLIPModel (family clip) has no cross-attention (leave prune out of the recipe for "
        "this model, and go on with distill)"
    ]
    assert faults(check(empty, ["export"], model="zoo:clip-easyvqa")) == [
        "r.yaml: task.kind: CLIPModel can't do vqa; it does: classification, retrieval"
    ]
    few = {"prune": {"cross_attention": {"heads": 0.01}}}
    (fault,) = faults(check(empty, ["export", few]))
    assert fault.startswith("r.yaml: stages[1].prune.cross_attention.heads: 0.01 of 40 heads in 4 modules is less than")
    (fault,) = faults(check(empty, ["export"], model="/"))
    assert fault.startswith("r.yaml: model: /: no config.json, so this is no Hugging Face model folder")


def test_a_setting_that_data_or_engine_can_not_serve_has_its_place(empty: Any) -> None:
    stages = [{"quantize": {"components": {"decoder": "int8-dynamic"}, "max_drop_pt": 0.5, "samples": 2}}]
    found = faults(check(empty, stages, target="cpu-openvino"))
    assert found[0] == (
        "r.yaml: stages[0].quantize.components.decoder: int8-dynamic is for onnxruntime; "
        "the target's engine is openvino"
    )
    assert found[1].startswith("r.yaml: stages[0].quantize.max_drop_pt: own's train split without the images that are")


def test_16_bit_graphs_are_for_engines_that_have_them(empty: Any) -> None:
    stages = [{"export": {"dtype": "bfloat16"}}, {"quantize": {"components": {"vision_encoder": "int8", "*": "none"}}}]
    assert faults(check(empty, stages)) == [
        "r.yaml: stages[0].export.dtype: onnxruntime computes in float32 or float16; bfloat16 is for tensorrt and "
        "tensorrt-rtx",
        "r.yaml: stages[1].quantize.components: the graphs are bfloat16; for onnxruntime float32 ones are quantized: "
        "export with dtype: float32",
    ]
    assert check(empty, stages, target="jetson-orin-tensorrt").exit_code == 0
    (fault,) = faults(check(empty, [{"export": {"dtype": "half"}}]))
    assert fault == "r.yaml: stages[0].export.dtype: input should be 'float32', 'float16' or 'bfloat16' (got 'half')"
    assert faults(check(empty, [{"export": {"dtype": "float16"}}], splits=())) == [
        "r.yaml: stages[0].export: it reads the split calibration; data.yaml has: test"
    ]


def test_images_that_can_not_be_read_are_notes_and_above_1_percent_a_fault(photos: Path, empty: Any) -> None:
    (photos / "test" / "7.png").write_text("no image")
    notes = json.loads(check(empty, ["export"]).stdout)["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("data.yaml: test: 7.png will be left out: ")
    assert empty.invoke("check", "r.yaml").stdout.startswith("note: data.yaml: test: 7.png will be left out: ")
    for number in range(3):
        shutil.copy(photos / "test" / "7.png", photos / "test" / f"{number}.png")
    (fault,) = faults(check(empty, ["export"]))
    assert fault.startswith("r.yaml: task.data: data.yaml: 4 of 200 test images can't be read, more than 1%")


def test_a_photo_in_test_and_train_is_a_fault_of_the_splits_that_are_read(photos: Path, empty: Any) -> None:
    shutil.copy(photos / "test" / "5.png", photos / "train" / "3.png")
    assert check(empty, ["export"]).exit_code == 0
    (fault,) = faults(check(empty, ["export", "quantize"]))
    assert fault.startswith(
        "r.yaml: task.data: data.yaml: calibration: 1 images are also in test, byte for byte, such as"
    )
    assert f"{photos / 'train' / '3.png'} and {photos / 'test' / '5.png'}" in fault


def test_the_manifest_of_docs_measuring_checks(empty: Any) -> None:
    page = PAGE.read_text()
    (manifest,) = re.findall(r"```yaml\n# photos\.yaml\n(.*?)```", page, re.DOTALL)
    Path("photos.yaml").write_text(manifest)
    task = {"kind": yaml.safe_load(manifest)["kind"], "data": "photos.yaml"}
    assert check(empty, ["export", "quantize", {"distill": {}}], task=task).exit_code == 0
    section = page[page.index("### A manifest of your own photos") : page.index("## Accuracy")]
    required = set(re.findall(r"^\| `(\w+)` \| required", section, re.MULTILINE))
    for key in required:
        Path("photos.yaml").write_text(json.dumps({**yaml.safe_load(manifest), key: None}))
        assert check(empty, ["export"], task=task).exit_code == 2
    assert required == {"name", "kind", "source", "licence", "splits"}
