"""SigLIP 2 NaFlex from a random checkpoint through export and the runtime, against transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import Exported, change_json, least_cosine
from tiny_dual_encoders import naflex_of
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.image_inputs import image_inputs
from vlm_edge.runtime import DualEncoderPipeline

SUBJECTS = ["SigLIP 2 NaFlex"]
FAMILY = FAMILIES["siglip2-naflex"]
TEXTS = ["a red dot", "blue", "a green hat"]
"""16 tokens or fewer: the model reads no more."""
SIZES = [(40, 57), (30, 100), (200, 31), (64, 64), (7, 5)]


def images() -> list[np.ndarray]:
    generator = np.random.default_rng(6)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def test_embeddings_and_probabilities_are_transformers(checkpoint: Path, subject: Exported, families_page: Any) -> None:
    """Grids of 3 x 5 (3 patches of padding), 2 x 8, 9 x 2, 4 x 4 and 5 x 3: wider and narrower than the table's."""
    pipeline = subject.pipeline
    assert isinstance(pipeline, DualEncoderPipeline)
    inputs = Siglip2ImageProcessorPil.from_pretrained(checkpoint)(images=images(), return_tensors="pt")
    assert len({tuple(shape) for shape in inputs["spatial_shapes"].tolist()}) == 5
    assert not inputs["pixel_attention_mask"].all()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = subject.model(**inputs, **texts)
    cosine = min(
        least_cosine(pipeline.embed_images(images(), batch_size=3), expected.image_embeds),
        least_cosine(pipeline.embed_texts(TEXTS), expected.text_embeds),
    )
    families_page("an image is as many patches as the processor says; no distillation", cosine=cosine)
    np.testing.assert_allclose(pipeline.classify(images(), TEXTS), expected.logits_per_image.sigmoid(), atol=1e-5)
    assert subject.facts["composed"]["max_relative_error"] < 1e-5


def test_patches_are_the_processors(checkpoint: Path) -> None:
    expected = Siglip2ImageProcessorPil.from_pretrained(checkpoint)(images=images(), return_tensors="np")
    inputs = image_inputs(images(), FAMILY.image_processing(checkpoint))
    assert set(inputs) == set(expected)
    for name, values in inputs.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)


def test_patches_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = naflex_of(tmp_path)
    change_json(folder / "preprocessor_config.json", patch_size=16)
    with pytest.raises(VlmEdgeError, match="whole patches of 8 pixels; got do_resize=True, patch_size=16"):
        FAMILY.image_processing(folder)


def test_attention_sites_leave_the_pooling_out(checkpoint: Path) -> None:
    sites = FAMILY.attention_sites(load_checkpoint(checkpoint).model)
    assert [site.component for site in sites] == ["text_encoder"] * 2 + ["vision_encoder"] * 2
