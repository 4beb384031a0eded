"""Small CLIP, SigLIP and ViT-BERT dual encoders with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from family_checkpoints import PAD, POSITIONS, SEP, TOWER, VOCABULARY, change_json, write_checkpoint

TEXTS = ["a photo of a red circle", "blue", "is there a green triangle in this picture"]
VISION = TOWER | {"image_size": 32, "patch_size": 8}
VIT = transformers.ViTConfig(**VISION)
WORDS = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_token_id": PAD}
BERT = transformers.BertConfig(**TOWER, **WORDS)


def processor(name: str, **settings: Any) -> dict[str, Any]:
    return {"image_processor_type": name, "size": {"height": 32, "width": 32}} | settings


def clip_of(folder: Path) -> Path:
    config = transformers.CLIPConfig(
        text_config=TOWER | WORDS | {"eos_token_id": SEP, "projection_dim": 24},
        vision_config=VISION | {"projection_dim": 24},
        projection_dim=24,
    )
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return write_checkpoint(folder, transformers.CLIPModel(config), processor("CLIPImageProcessor", **crop))


def siglip_of(folder: Path) -> Path:
    """Its tokenizer gives no mask, as SigLIP 1's."""
    config = transformers.SiglipConfig(
        text_config=TOWER | {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "projection_size": 32},
        vision_config=VISION,
    )
    write_checkpoint(folder, transformers.SiglipModel(config), processor("SiglipImageProcessor", resample=3))
    change_json(folder / "tokenizer_config.json", model_input_names=["input_ids"])
    return folder


def vision_text_of(folder: Path, vision: Any = VIT, text: Any = BERT) -> Path:
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    return write_checkpoint(folder, transformers.VisionTextDualEncoderModel(config), processor("ViTImageProcessor"))
