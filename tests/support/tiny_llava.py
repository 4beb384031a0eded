"""A small LLaVA with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_tokenizer
import tiny_vlm
import transformers

MODEL = transformers.LlavaForConditionalGeneration
SPECIAL = ("<image>",)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] if content['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""llava-hf/llava-1.5-7b-hf's, its generation tags left out."""
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


def checkpoint_of(folder: Path, **text: Any) -> Path:
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL, template=TEMPLATE)
    config = transformers.LlavaConfig(
        vision_config=tiny_vlm.VISION
        | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 16},
        text_config=tiny_vlm.TEXT | {"model_type": "llama", "vocab_size": vocabulary} | text,
        image_token_index=byte_tokenizer.token_id(SPECIAL, "<image>"),
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR)
    return folder
