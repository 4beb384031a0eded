"""A small ViLT with random weights and an answer head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from family_checkpoints import PAD, TOWER, VOCABULARY, write_checkpoint

MODEL = transformers.ViltForQuestionAnswering
ANSWERS = ["yes", "no", "red", "two dogs", "green", "left", "3", "pizza", "on the table", "blue", "cat"]
PROCESSOR = {
    "image_processor_type": "ViltImageProcessor", "size": {"shortest_edge": 32}, "size_divisor": 16,
    "image_mean": [0.5, 0.4, 0.3],
}  # fmt: skip


def checkpoint_of(folder: Path, processor: dict[str, Any] = PROCESSOR, **changes: Any) -> Path:
    """Positions for 5 x 5 patches of 8 pixels; the processor gives 4 x 4 to 4 x 6."""
    config = transformers.ViltConfig(
        **TOWER, vocab_size=VOCABULARY, max_position_embeddings=26, pad_token_id=PAD, image_size=40, patch_size=8,
        id2label=dict(enumerate(ANSWERS)), label2id={answer: index for index, answer in enumerate(ANSWERS)}, **changes,
    )  # fmt: skip
    return write_checkpoint(folder, MODEL(config), processor, seed=7)
