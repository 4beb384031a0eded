"""IDEFICS: prompts, who sees which image, and gated cross-attention against transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny_vlm
import torch
import transformers
from family_checkpoints import Exported
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from vlm_edge.families.base import AttentionRole
from vlm_edge.runtime.generate import visible_images

SUBJECTS = ["Idefics"]
SIZES = [(40, 33), (30, 100), (20, 20)]


def test_prompts_and_masks_are_the_processors(subject: Exported) -> None:
    processor = transformers.IdeficsProcessor(
        image_processor=IdeficsImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
    )
    prompt = subject.pipeline.manifest.prompt
    assert prompt is not None

    def expected(images: Sequence[Any], question: str) -> Any:
        asked = f"{question.strip()}<end_of_utterance>\nAssistant:"
        first = ["User:", *images, asked] if images else [f"User:{asked}"]
        inputs = processor(text=[first], return_tensors="pt")
        row = inputs["input_ids"][0].tolist()
        seen = torch.from_numpy(visible_images(row, prompt, max(1, len(images))))
        assert torch.equal(inputs["image_attention_mask"][0].long(), seen)
        return inputs

    tiny_vlm.check_inputs(subject, expected, SIZES)


def test_gated_cross_attention_is_found(subject: Exported) -> None:
    sites = subject.family.attention_sites(subject.model)
    gated = [site.path for site in sites if site.role is AttentionRole.GATED_CROSS]
    assert gated == [f"model.gated_cross_attn_layers.{index}.cross_attn" for index in range(2)]
    assert sum(site.component == "decoder" for site in sites) == 6
    assert sum(site.component == "vision_encoder" for site in sites) == 2
