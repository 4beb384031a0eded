"""PaliGemma: a prefix that sees itself, Gemma 1 and 2, against transformers' processor and ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny_vlm
import transformers
from family_checkpoints import Exported
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm_edge.runtime import Request

SUBJECTS = ["PaliGemma, Gemma", "PaliGemma, Gemma 2"]
SIZES = [(40, 33), (64, 100), (31, 90)]


def test_answers_are_generates(subject: Exported, families_page: Any) -> None:
    """Prompts of more tokens than Gemma 2's window are among them, and the prefix sees itself across it."""
    images = tiny_vlm.photos(0, SIZES)
    answers = tiny_vlm.check_answers(
        subject,
        [
            Request("what is it?", images[:1]),
            Request("hello"),
            Request("how many?", images),
            Request("which one?", images[1:]),
        ],
    )
    families_page("the prompt is the images and the question, as its processor writes it", tokens=answers)


def test_prompts_are_the_processors(subject: Exported) -> None:
    processor = transformers.PaliGemmaProcessor(
        image_processor=SiglipImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
    )

    def expected(images: Sequence[Any], question: str) -> Any:
        return processor(images=[images], text=["<image>" * len(images) + question], return_tensors="np")

    tiny_vlm.check_inputs(subject, expected, SIZES, fewest=1)
