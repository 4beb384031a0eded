"""A small Qwen2-VL and Qwen2.5-VL with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_tokenizer
import tiny_vlm
import transformers

MODELS = {
    "qwen2-vl": transformers.Qwen2VLForConditionalGeneration,
    "qwen2.5-vl": transformers.Qwen2_5_VLForConditionalGeneration,
}
MODEL = MODELS["qwen2.5-vl"]
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen/Qwen2-VL-2B-Instruct's, without its numbering of images, which is off unless asked for."""
PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 16 * 16,
    "max_pixels": 48 * 48,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


def checkpoint_of(folder: Path, name: str = "qwen2.5-vl") -> Path:
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL, template=TEMPLATE, bos=False)
    vision: dict[str, Any] = {"depth": 3, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    if name == "qwen2-vl":
        vision |= {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 40, "window_size": 16}
        vision |= {"fullatt_block_indexes": [1]}
    ids = {f"{kind}_token_id": byte_tokenizer.token_id(SPECIAL, f"<|{kind}_pad|>") for kind in ("image", "video")}
    text = tiny_vlm.TEXT | {
        "vocab_size": vocabulary,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }
    model = MODELS[name]
    config = model.config_class(vision_config=vision, text_config=text, **ids)
    tiny_vlm.write_checkpoint(folder, model(config), PROCESSOR)
    return folder
