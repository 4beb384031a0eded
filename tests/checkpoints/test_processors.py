"""Image processors: the class that the folder names, its own defaults, and what it does with transparent images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import byte_tokenizer
import numpy as np
import pytest
import tiny_llava
import tiny_vlm
import transformers
from family_checkpoints import change_json, photos
from tiny_families import TINY
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.processing.images import preprocess

SETTINGS = "preprocessor_config.json"


def llava_with_siglip(folder: Path, processor: dict[str, Any]) -> Path:
    """A LLaVA whose vision tower is SigLIP's, at 32 x 32 pixels."""
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, tiny_llava.SPECIAL, template=tiny_llava.TEMPLATE)
    config = transformers.LlavaConfig(
        vision_config=tiny_vlm.VISION | {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
        text_config=tiny_vlm.TEXT | {"model_type": "llama", "vocab_size": vocabulary},
        image_token_index=byte_tokenizer.token_id(tiny_llava.SPECIAL, "<image>"),
        vision_feature_select_strategy="full",
    )
    tiny_vlm.write_checkpoint(folder, tiny_llava.MODEL(config), processor)
    return folder


def test_the_folders_class_is_reproduced_with_its_own_defaults(tmp_path: Path) -> None:
    """CLIPImageProcessor's, LLaVA's usual class, would crop to 224 and normalise otherwise."""
    source = llava_with_siglip(
        tmp_path, {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    )
    spec = FAMILIES["llava"].image_processing(source)
    assert (spec.processor, spec.height, spec.width) == ("SiglipImageProcessor", 32, 32)
    expected = SiglipImageProcessorPil.from_pretrained(source)(photos(), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(preprocess(photos(), spec), expected)


def test_a_size_that_the_tower_does_not_take_names_both_files(tmp_path: Path) -> None:
    source = llava_with_siglip(tmp_path, {"image_processor_type": "SiglipImageProcessor"})
    with pytest.raises(VlmEdgeError) as caught:
        FAMILIES["llava"].image_processing(source)
    for words in (SETTINGS, "224 x 224", "SiglipImageProcessor", "config.json", "32 x 32"):
        assert words in caught.value.message


@pytest.mark.parametrize(
    ("named", "settings"),
    [
        ("SiglipImageProcessorFast", {}),
        ("SiglipImageProcessorPil", {}),
        (None, {"feature_extractor_type": "SiglipFeatureExtractor"}),
    ],
)
def test_other_names_of_a_class(tmp_path: Path, named: str | None, settings: dict[str, Any]) -> None:
    size = {"height": 32, "width": 32}
    source = llava_with_siglip(tmp_path, {"image_processor_type": named, "size": size} | settings)
    assert FAMILIES["llava"].image_processing(source).processor == "SiglipImageProcessor"


def test_settings_inside_the_processors_file(tmp_path: Path) -> None:
    settings = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    source = llava_with_siglip(tmp_path, settings)
    (source / SETTINGS).unlink()
    (source / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert FAMILIES["llava"].image_processing(source).processor == "SiglipImageProcessor"


def test_a_class_that_transformers_has_not_gives_way_to_the_architectures(tmp_path: Path) -> None:
    source = tiny_llava.checkpoint_of(tmp_path)
    change_json(source / SETTINGS, image_processor_type="LlavaImageProcessorOfMyOwn")
    assert FAMILIES["llava"].image_processing(source).processor == "CLIPImageProcessor"


@pytest.mark.parametrize("name", ["LLaVA-NeXT", "Qwen2-VL", "Idefics3", "Mllama (Llama 3.2 Vision)", "ViLT, questions"])
def test_tiles_and_patches_of_another_class_are_refused(name: str, tmp_path: Path) -> None:
    tiny = TINY[name]
    tiny.write(tmp_path / "checkpoint")
    change_json(tmp_path / "checkpoint" / SETTINGS, image_processor_type="CLIPImageProcessor")
    with pytest.raises(VlmEdgeError, match="image_processor_type: CLIPImageProcessorPil; this architecture"):
        FAMILIES[tiny.family].image_processing(tmp_path / "checkpoint")


def test_smolvlm_takes_idefics3s_class_too(tmp_path: Path) -> None:
    """Which SmolVLM's first checkpoints name."""
    TINY["SmolVLM"].write(tmp_path / "checkpoint")
    change_json(tmp_path / "checkpoint" / SETTINGS, image_processor_type="Idefics3ImageProcessor")
    spec = FAMILIES["smolvlm"].image_processing(tmp_path / "checkpoint")
    assert spec.processor == "Idefics3ImageProcessor"


def test_do_convert_rgb_decides_what_becomes_of_transparent_pixels(tmp_path: Path) -> None:
    source = tiny_llava.checkpoint_of(tmp_path)
    family = FAMILIES["llava"]
    assert family.image_processing(source).transparency == "white"
    change_json(source / SETTINGS, do_convert_rgb=False)
    assert family.image_processing(source).transparency == "refuse"
