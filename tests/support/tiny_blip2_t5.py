"""A small BLIP-2 with a T5 and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_vlm
import transformers
from family_checkpoints import DEC, PAD, SEP, VOCABULARY, write_checkpoint

MODEL = transformers.Blip2ForConditionalGeneration
TOKENS = 32
PROCESSOR = {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}}
GENERATION = {"decoder_start_token_id": PAD, "eos_token_id": SEP, "pad_token_id": PAD, "max_new_tokens": TOKENS}


def checkpoint_of(folder: Path, **text: Any) -> Path:
    """Buckets for few distances, so that a prompt of a few words reaches the farthest."""
    t5 = {
        "model_type": "t5", "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2,
        "num_heads": 4, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12, "tie_word_embeddings": False, "decoder_start_token_id": PAD,
        "pad_token_id": PAD, "eos_token_id": SEP,
    }  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=tiny_vlm.VISION | {"image_size": 32, "patch_size": 8},
        qformer_config=tiny_vlm.VISION | {"encoder_hidden_size": 24, "cross_attention_frequency": 2, "vocab_size": 40},
        text_config=t5 | text,
        num_query_tokens=5,
        image_token_index=DEC,
    )
    return write_checkpoint(folder, MODEL(config), PROCESSOR, generation=GENERATION)
