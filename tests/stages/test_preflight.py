"""The preflight on every family's tiny model, and what it stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_checkpoints import Exported
from PIL import Image, ImageOps
from shared_exports import exported_once
from tiny_bench import write_task
from tiny_families import TINY

from vlm_edge.api import check_recipe
from vlm_edge.checkpoints.processors import MOST_STEPS, picture_difference
from vlm_edge.core.stage import SilentProgress, TaskSpec
from vlm_edge.errors import RecipeError, VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.processing.images import read_image
from vlm_edge.processing.manifest import read_manifest, write_manifest
from vlm_edge.stages.preflight import Preflight, check_answers


def icon() -> Image.Image:
    """Smooth colours under an alpha of every kind."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 4), dtype=np.uint8))
    return small.resize((57, 44), Image.Resampling.BICUBIC)


def write_images(folder: Path) -> dict[str, Path]:
    """One image of every kind that processors treat in their own ways."""
    folder.mkdir()
    rgb, rgba, exif = icon().convert("RGB"), icon(), Image.Exif()
    exif[0x0112] = 6
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "rgba.png": (rgba, {}),
        "opaque.png": (rgb.convert("RGBA"), {}),
        "grey.png": (rgb.convert("L"), {}),
        "la.png": (rgba.convert("LA"), {}),
        "palette.png": (rgb.quantize(16), {}),
        "palette-clear.png": (rgb.quantize(16), {"transparency": bytes([0, 100, 255])}),
        "colour-clear.png": (
            rgb.quantize(4).convert("RGB"),
            {"transparency": rgb.quantize(4).convert("RGB").getpixel((0, 0))},
        ),
        "icon.gif": (rgb.quantize(16), {"transparency": 3}),
        "turned.jpg": (rgb, {"exif": exif}),
        "turned-rgba.png": (rgba, {"exif": exif}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "deep.png": (Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257), {}),
        "one-bit.png": (rgb.convert("1"), {}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return {name: folder / name for name in images}


REFUSED = {"cmyk.jpg": "mode CMYK", "deep.png": "16-bit"}
CLEAR = {"rgba.png", "la.png", "palette-clear.png", "colour-clear.png", "icon.gif", "turned-rgba.png"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_images(tmp_path_factory.mktemp("kinds") / "images")


@pytest.mark.parametrize("name", list(TINY))
def test_every_family_reads_every_image_as_transformers_does_or_says_why_not(
    name: str, tmp_path: Path, images: dict[str, Path]
) -> None:
    from transformers import AutoImageProcessor

    tiny = TINY[name]
    tiny.write(tmp_path / "checkpoint")
    family = FAMILIES[tiny.family]
    spec = family.image_processing(tmp_path / "checkpoint")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "checkpoint", backend="pil")
    for kind, path in images.items():
        if kind in REFUSED or (kind in CLEAR and spec.transparency == "refuse"):
            with pytest.raises(VlmEdgeError, match=REFUSED.get(kind, "transparent pixels")):
                read_image(path, spec.transparency)
            continue
        with Image.open(path) as file:
            original = ImageOps.exif_transpose(file)
        if spec.transparency == "refuse":  # a processor that converts nothing: its user does
            original = original.convert("RGB")
        steps = picture_difference(
            read_image(path, spec.transparency), spec, family.processed(processor, original, spec)
        )
        assert steps <= MOST_STEPS, f"{kind}: {steps}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_once(tmp_path_factory, "CLIP", TINY["CLIP"].write, TINY["CLIP"].model)


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> TaskSpec:
    """The images as a data set, with a class each."""
    folder = tmp_path_factory.mktemp("icons")
    (folder / "data").mkdir()
    names = write_images(folder / "data" / "test")
    rows = [{"file_name": name, "label": ("circle", "square")[index % 2]} for index, name in enumerate(names)]
    return write_task(folder, rows, kind="classification", labels=["circle", "square"], prompts=["a {}"])


def altered(exported: Exported, folder: Path, **changes: Any) -> Path:
    """The graphs with another manifest."""
    shutil.copytree(exported.folder, folder)
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update=changes))
    return folder


def test_it_passes_and_says_what_it_compared(clip: Exported, icons: TaskSpec) -> None:
    facts = Preflight()(clip.checkpoint, clip.folder, icons, SilentProgress())
    assert facts["images"]["compared"] >= 5
    assert facts["images"]["max_steps"] <= 1.001
    assert facts["answers"]["images"] == 4
    assert facts["answers"]["max_relative_error"] < 1e-4


def test_dropped_transparency_stops_the_run_and_names_image_and_classes(
    clip: Exported, icons: TaskSpec, tmp_path: Path
) -> None:
    """The case that was found: a CLIP on transparent icons fell from 36.5% to 3.3%, and every check passed."""
    image = read_manifest(clip.folder).image.model_copy(update={"transparency": "drop"})
    folder = altered(clip, tmp_path / "graphs", image=image)
    with pytest.raises(VlmEdgeError) as caught:
        Preflight()(clip.checkpoint, folder, icons, SilentProgress())
    for words in (".png: transformers' CLIPImageProcessorPil and what was exported of CLIPImageProcessor", "of 255"):
        assert words in caught.value.message


def test_an_engine_that_is_not_the_model_stops_the_run(clip: Exported, icons: TaskSpec, tmp_path: Path) -> None:
    folder = altered(clip, tmp_path / "graphs", logit_scale=3.0)
    with pytest.raises(VlmEdgeError, match=r"preflight: .*transformers' CLIPModel .*similarities differ"):
        check_answers(clip.checkpoint, folder, icons)


def test_check_has_the_image_part(clip: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    names = [name for name in write_images(tmp_path / "data" / "test") if name not in REFUSED]
    rows = [{"file_name": name, "label": "circle"} for name in names]
    task = write_task(tmp_path, rows, kind="classification", labels=["circle", "square"], prompts=["a {}"])
    recipe = tmp_path / "icons.yaml"
    recipe.write_text(
        json.dumps(
            {
                "name": "icons",
                "model": str(clip.checkpoint),
                "task": {"kind": "classification", "data": str(task.data)},
                "target": "cpu-ort",
                "budgets": {"size": {"max_ratio": 2}},
                "stages": [{"export": {}}, {"compile": {}}],
            }
        )
    )
    assert check_recipe(recipe).notes == ()
    dropping = FAMILIES["clip"].image_processing(clip.checkpoint).model_copy(update={"transparency": "drop"})
    monkeypatch.setattr(type(FAMILIES["clip"]), "image_processing", lambda *_: dropping)
    with pytest.raises(RecipeError, match=r"icons.yaml: model: .*of 255"):
        check_recipe(recipe)


def test_a_language_model_is_asked_about_the_users_images(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    tiny = TINY["LLaVA-1.5"]
    llava = exported_once(tmp_path_factory, "LLaVA-1.5", tiny.write, tiny.model)
    (tmp_path / "data").mkdir()
    names = write_images(tmp_path / "data" / "test")
    rows = [{"file_name": name, "question": "what is it?", "answer": "a"} for name in names]
    facts = check_answers(llava.checkpoint, llava.folder, write_task(tmp_path, rows))
    assert facts["questions_equal"] + facts["ties"] == 4
