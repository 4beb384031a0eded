"""A small PaliGemma with Gemma 1 and 2 with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_tokenizer
import tiny_vlm
import transformers

MODEL = transformers.PaliGemmaForConditionalGeneration
SPECIAL = ("<image>",)
PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_seq_length": 16,
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
GEMMAS: dict[str, dict[str, Any]] = {
    "gemma": {"num_key_value_heads": 1, "head_dim": 12},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 24,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 30.0,
        "final_logit_softcapping": 20.0,
    },
}


def checkpoint_of(folder: Path, gemma: str = "gemma") -> Path:
    """The image token has no row in the embedding table, as in PaliGemma 1."""
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL)
    config = transformers.PaliGemmaConfig(
        vision_config=tiny_vlm.VISION
        | {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 32},
        text_config=tiny_vlm.TEXT | {"model_type": gemma, "vocab_size": vocabulary - 1} | GEMMAS[gemma],
        image_token_index=byte_tokenizer.token_id(SPECIAL, "<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR, seed=1)
    return folder
