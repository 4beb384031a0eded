"""LLaVA-NeXT: tiles, padding and row ends against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_vlm
import transformers
from family_checkpoints import Exported
from tiny_llava_next import PINPOINTS, TEMPLATE, checkpoint_of
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES

SUBJECTS = ["LLaVA-NeXT"]
SIZES = [(40, 33), (64, 100), (31, 200), (20, 20)]


def test_prompts_and_tiles_are_the_processors(subject: Exported) -> None:
    processor = transformers.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    tiny_vlm.check_processor(subject, processor, SIZES)


def test_resolutions_that_differ_are_refused(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path / "other", image_grid_pinpoints=PINPOINTS[:2])
    with pytest.raises(VlmEdgeError, match=r"image_grid_pinpoints: config\.json and preprocessor_config\.json differ"):
        FAMILIES["llava-next"].image_processing(folder)
