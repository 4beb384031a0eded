"""A small Idefics3 and SmolVLM with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_tokenizer
import tiny_vlm
import transformers

MODEL = transformers.Idefics3ForConditionalGeneration
SPECIAL = (
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<|im_start|>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""HuggingFaceTB/SmolVLM-256M-Instruct's."""
PROCESSOR = {
    "image_processor_type": "Idefics3ImageProcessor",
    "size": {"longest_edge": 96},
    "max_image_size": {"longest_edge": 32},
    "do_image_splitting": True,
    "resample": 1,
    "image_mean": [0.5, 0.4, 0.5],
    "image_std": [0.5, 0.5, 0.6],
}


def checkpoint_of(folder: Path, model: Any = MODEL, **processor: Any) -> Path:
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL, template=TEMPLATE, bos=False)
    config = model.config_class(
        vision_config=tiny_vlm.VISION | {"image_size": 32, "patch_size": 8},
        text_config=tiny_vlm.TEXT | {"model_type": "llama", "vocab_size": vocabulary, "num_key_value_heads": 2},
        image_token_id=byte_tokenizer.token_id(SPECIAL, "<image>"),
        scale_factor=2,
        tie_word_embeddings=True,
    )
    tiny_vlm.write_checkpoint(folder, model(config), PROCESSOR | processor)
    return folder
