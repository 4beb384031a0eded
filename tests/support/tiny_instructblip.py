"""A small InstructBLIP with random weights."""

from __future__ import annotations

from pathlib import Path

import byte_tokenizer
import tiny_vlm
import transformers

from vlm_edge.zoo.create import write_tokenizer

MODEL = transformers.InstructBlipForConditionalGeneration
SPECIAL = ("<image>",)
PROCESSOR = {
    "image_processor_type": "BlipImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


def checkpoint_of(folder: Path) -> Path:
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL)
    (folder / "qformer_tokenizer").mkdir()
    write_tokenizer(folder / "qformer_tokenizer", 120, 40)
    qformer = tiny_vlm.VISION | {"encoder_hidden_size": 24, "vocab_size": 120, "max_position_embeddings": 40}
    config = transformers.InstructBlipConfig(
        vision_config=tiny_vlm.VISION | {"image_size": 32, "patch_size": 8},
        qformer_config=qformer,
        text_config=tiny_vlm.TEXT | {"model_type": "llama", "vocab_size": vocabulary},
        num_query_tokens=5,
        image_token_index=byte_tokenizer.token_id(SPECIAL, "<image>"),
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR)
    return folder
