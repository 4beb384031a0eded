"""A small Llama 3.2 Vision with random weights."""

from __future__ import annotations

from pathlib import Path

import byte_tokenizer
import tiny_vlm
import transformers

MODEL = transformers.MllamaForConditionalGeneration
SPECIAL = ("<|image|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
TEMPLATE = (
    "{{- bos_token }}{% for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ content['text'] | trim }}{% endif %}{% endfor %}"
    "{{- '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""The part of meta-llama/Llama-3.2-11B-Vision-Instruct's for one turn."""
PROCESSOR = {
    "image_processor_type": "MllamaImageProcessor",
    "size": {"height": 32, "width": 32},
    "max_image_tiles": 3,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


def checkpoint_of(folder: Path) -> Path:
    """The image token is the first behind the vocabulary, as in the published model."""
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, (*SPECIAL[1:], SPECIAL[0]), template=TEMPLATE)
    config = transformers.MllamaConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "max_num_tiles": 3,
            "intermediate_layers_indices": [0, 2],
            "vision_output_dim": 24 * 3,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [2, 1], [3, 1]],
        },
        text_config=tiny_vlm.TEXT
        | {
            "num_hidden_layers": 4,
            "cross_attention_layers": [1, 3],
            "num_key_value_heads": 2,
            "vocab_size": vocabulary - 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        image_token_index=vocabulary - 1,
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR)
    return folder
