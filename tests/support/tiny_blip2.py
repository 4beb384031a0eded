"""A small BLIP-2 with both forms of OPT with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_tokenizer
import tiny_vlm
import transformers

MODEL = transformers.Blip2ForConditionalGeneration
SPECIAL = ("<image>",)
PROCESSOR = {
    "image_processor_type": "BlipImageProcessor",
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
LANGUAGE: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
    "opt-350m": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
}


def config_of(vocabulary: int, text: dict[str, Any]) -> Any:
    tower = tiny_vlm.VISION | {"image_size": 32, "patch_size": 8}
    qformer = tiny_vlm.VISION | {"encoder_hidden_size": 24, "cross_attention_frequency": 2, "vocab_size": 40}
    return transformers.Blip2Config(
        vision_config=tower,
        qformer_config=qformer,
        text_config=tiny_vlm.TEXT | {"vocab_size": vocabulary} | text,
        num_query_tokens=5,
        image_token_index=byte_tokenizer.token_id(SPECIAL, "<image>"),
    )


def checkpoint_of(folder: Path, language: str = "opt") -> Path:
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL)
    tiny_vlm.write_checkpoint(folder, MODEL(config_of(vocabulary, LANGUAGE[language])), PROCESSOR)
    return folder
