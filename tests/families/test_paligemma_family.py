"""PaliGemma: prompts against transformers' processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny_vlm
import transformers
from family_checkpoints import Exported
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SUBJECTS = ["PaliGemma, Gemma", "PaliGemma, Gemma 2"]
SIZES = [(40, 33), (64, 100), (31, 90)]


def test_prompts_are_the_processors(subject: Exported) -> None:
    processor = transformers.PaliGemmaProcessor(
        image_processor=SiglipImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
    )

    def expected(images: Sequence[Any], question: str) -> Any:
        return processor(images=[images], text=["<image>" * len(images) + question], return_tensors="np")

    tiny_vlm.check_inputs(subject, expected, SIZES, fewest=1)
