"""A ViT beside a BERT or a RoBERTa, against transformers' processor and forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import TOWER, Exported, least_cosine, photos
from tiny_dual_encoders import TEXTS, VIT, WORDS, vision_text_of
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.runtime import DualEncoderPipeline

SUBJECTS = ["ViT beside BERT"]
FAMILY = FAMILIES["vision-text-dual-encoder"]


def reference(source: Path) -> Any:
    pixels = ViTImageProcessorPil.from_pretrained(source)(photos(), return_tensors="pt")["pixel_values"]
    tokens = transformers.AutoTokenizer.from_pretrained(source)(TEXTS, padding=True, return_tensors="pt")
    model = transformers.VisionTextDualEncoderModel.from_pretrained(source).eval()
    with torch.no_grad():
        return model(pixel_values=pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])


def test_embeddings_are_transformers(subject: Exported, families_page: Any) -> None:
    pipeline = subject.pipeline
    assert isinstance(pipeline, DualEncoderPipeline)
    expected = reference(subject.checkpoint)
    cosine = min(
        least_cosine(pipeline.embed_images(photos()), expected.image_embeds),
        least_cosine(pipeline.embed_texts(TEXTS), expected.text_embeds),
    )
    families_page("towers: BERT, RoBERTa and XLM-RoBERTa beside ViT, DeiT and CLIP's", cosine=cosine)
    np.testing.assert_allclose(pipeline.classify(photos(), TEXTS), expected.logits_per_image.softmax(-1), atol=1e-4)
    assert subject.facts["composed"]["max_relative_error"] < 1e-4


def test_a_roberta_beside_clips_tower(tmp_path: Path) -> None:
    vision = transformers.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)
    source = vision_text_of(tmp_path, vision, transformers.RobertaConfig(**TOWER, **WORDS))
    loaded = load_checkpoint(source)
    components = FAMILY.components(loaded.model, FAMILY.image_processing(source))
    tokens = transformers.AutoTokenizer.from_pretrained(source)(TEXTS, padding=True, return_tensors="pt")
    pixels = ViTImageProcessorPil.from_pretrained(source)(photos(), return_tensors="pt")["pixel_values"]
    expected = reference(source)
    with torch.no_grad():
        (images,) = components["vision_encoder"].module(pixels)
        (texts,) = components["text_encoder"].module(tokens["input_ids"], tokens["attention_mask"])
    torch.testing.assert_close(images, expected.image_embeds)
    torch.testing.assert_close(texts, expected.text_embeds)
    sites = FAMILY.attention_sites(loaded.model)
    assert sorted(site.component for site in sites) == ["text_encoder"] * 2 + ["vision_encoder"] * 2
    assert {site.role for site in sites} == {AttentionRole.SELF}


def test_towers_that_are_not_known_are_named() -> None:
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(VIT, transformers.T5Config())
    with pytest.raises(VlmEdgeError, match="text_config: 't5' can't be exported; known: bert, roberta, xlm-roberta"):
        FAMILY.build(config.to_dict())
