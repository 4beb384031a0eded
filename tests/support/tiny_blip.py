"""Small BLIPs with random weights: questions, captions, and image-text matching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from family_checkpoints import CLS, DEC, PAD, SEP, TOWER, VOCABULARY, write_checkpoint

VQA = transformers.BlipForQuestionAnswering
CAPTIONING = transformers.BlipForConditionalGeneration
MATCHING = transformers.BlipForImageTextRetrieval
TOKENS, POSITIONS = 32, 40
"""Most new tokens, and the positions that they and the start token have to fit in."""
PROCESSOR = {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}}


def checkpoint_of(folder: Path, model: Any) -> Path:
    text = TOWER | {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "encoder_hidden_size": 32}
    ids = {"pad_token_id": PAD, "bos_token_id": DEC, "sep_token_id": SEP, "cls_token_id": CLS, "eos_token_id": SEP}
    config = transformers.BlipConfig(
        text_config=text | ids,
        vision_config=TOWER | {"image_size": 32, "patch_size": 8},
        image_text_hidden_size=24,
    )
    generation = None if model is MATCHING else {"max_new_tokens": TOKENS, "eos_token_id": SEP, "pad_token_id": PAD}
    return write_checkpoint(folder, model(config), PROCESSOR, generation=generation)
