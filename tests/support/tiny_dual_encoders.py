"""Small CLIP, SigLIP and ViT-BERT dual encoders with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from family_checkpoints import PAD, POSITIONS, SEP, TOWER, VOCABULARY, change_json, write_checkpoint
from tokenizers import normalizers, processors

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


def naflex_of(folder: Path) -> Path:
    """Positions for 4 x 4 patches of 8 pixels, images of at most 18; as published, its tokenizer.json leaves capitals
    to transformers' class, which pads left and gives a mask."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["\u2581", *"abcdefghijklmnopqrstuvwxyz", "re", "red", "\u2581p"]
    merges = [("r", "e"), ("re", "d"), ("\u2581", "p")]
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = transformers.Siglip2Config(
        text_config=TOWER | special | {"vocab_size": len(tokens), "max_position_embeddings": 16, "projection_size": 32},
        vision_config=TOWER | {"patch_size": 8, "num_patches": 16},
    )
    settings = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 18}
    write_checkpoint(folder, transformers.Siglip2Model(config), settings)
    tokenizer = transformers.Siglip2Tokenizer({token: index for index, token in enumerate(tokens)}, merges)
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save_pretrained(folder)
    return folder


def vision_text_of(folder: Path, vision: Any = VIT, text: Any = BERT) -> Path:
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    return write_checkpoint(folder, transformers.VisionTextDualEncoderModel(config), processor("ViTImageProcessor"))
