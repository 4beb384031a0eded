"""A small LLaVA-NeXT with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_tokenizer
import tiny_vlm
import transformers

MODEL = transformers.LlavaNextForConditionalGeneration
SPECIAL = ("<image>",)
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] if content['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% endif %}{% endfor %}"
)
"""llava-hf/llava-v1.6-mistral-7b-hf's, for one turn."""
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
PROCESSOR = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "image_grid_pinpoints": PINPOINTS,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


def checkpoint_of(folder: Path, **processor: Any) -> Path:
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL, template=TEMPLATE)
    config = transformers.LlavaNextConfig(
        vision_config=tiny_vlm.VISION
        | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 16},
        text_config=tiny_vlm.TEXT
        | {"model_type": "mistral", "vocab_size": vocabulary, "num_key_value_heads": 2, "sliding_window": 64},
        image_token_index=byte_tokenizer.token_id(SPECIAL, "<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR | processor)
    return folder
