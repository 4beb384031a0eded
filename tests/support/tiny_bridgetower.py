"""A small BridgeTower with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from family_checkpoints import PAD, VOCABULARY, write_checkpoint

MODEL = transformers.BridgeTowerForImageAndTextRetrieval
PROCESSOR = {
    "image_processor_type": "BridgeTowerImageProcessor", "size": {"shortest_edge": 64},
    "crop_size": {"shortest_edge": 64}, "size_divisor": 32,
}  # fmt: skip


def checkpoint_of(folder: Path, **changes: Any) -> Path:
    """Three layers in each tower, of which the upper two are bridged."""
    text = {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
        "vocab_size": VOCABULARY, "max_position_embeddings": 26, "pad_token_id": PAD,
    }  # fmt: skip
    config = transformers.BridgeTowerConfig(
        text_config=text,
        vision_config={"hidden_size": 64, "num_hidden_layers": 3, "image_size": 64, "patch_size": 32},
        hidden_size=64, num_attention_heads=4, num_hidden_layers=2, **changes,
    )  # fmt: skip
    return write_checkpoint(folder, MODEL(config), PROCESSOR)
