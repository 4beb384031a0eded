"""ViLT from a random checkpoint through export and the runtime, against transformers' processor and forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import Exported, change_json
from tiny_vilt import ANSWERS, MODEL, PROCESSOR, checkpoint_of
from torch.nn.functional import unfold
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.image_inputs import image_inputs
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime import AnswerHeadPipeline

SUBJECTS = ["ViLT, questions"]
FAMILY = FAMILIES["vilt"]
QUESTIONS = ["is it a red circle?", "how many?", "what is to the left of the green triangle", "blue"]
SIZES = [(40, 57), (30, 100), (100, 31), (64, 64)]


def images(sizes: list[tuple[int, int]] = SIZES) -> list[np.ndarray]:
    generator = np.random.default_rng(6)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_answers_are_transformers(checkpoint: Path, subject: Exported, families_page: Any) -> None:
    """A batch of images of several shapes, padded by transformers' own processor."""
    pipeline = subject.pipeline
    assert isinstance(pipeline, AnswerHeadPipeline)
    processor = transformers.ViltProcessor(
        ViltImageProcessorPil.from_pretrained(checkpoint), transformers.AutoTokenizer.from_pretrained(checkpoint)
    )
    inputs = processor(images(), QUESTIONS, padding=True, return_tensors="pt")
    assert not inputs["pixel_mask"].all()
    assert not inputs["attention_mask"].all()
    with torch.no_grad():
        expected = subject.model(**inputs).logits.numpy()
    pictures = pipeline.encode_images(images())
    assert np.abs(expected).max() > 0.1
    answers = [ANSWERS[place] for place in expected.argmax(axis=1)]
    assert len(set(answers)) > 1
    assert pipeline.answer_batch(pictures, QUESTIONS) == answers
    assert [pipeline.answer(*pair) for pair in zip(images(), QUESTIONS, strict=True)] == answers
    error = np.abs(pipeline.scores(pictures, QUESTIONS) - 1 / (1 + np.exp(-expected))).max()
    families_page("every patch is seen: a limit that picks some at random is refused", answer_error=float(error))
    assert subject.facts["composed"]["max_relative_error"] < 1e-5
    assert read_manifest(subject.folder).labels == tuple(ANSWERS)


@pytest.mark.parametrize("size", [(64, 64), (40, 57), (110, 41), (40, 100), (65, 64), (500, 501)])
def test_patches_are_the_processors(checkpoint: Path, size: tuple[int, int]) -> None:
    (image,) = images([size])
    pixels = ViltImageProcessorPil.from_pretrained(checkpoint)(image, return_tensors="pt")["pixel_values"]
    expected = unfold(pixels, 8, stride=8).view(1, 3, 64, -1).permute(0, 3, 2, 1).flatten(2)
    inputs = image_inputs([image], FAMILY.image_processing(checkpoint))
    np.testing.assert_allclose(inputs["pixel_values"], expected, atol=1e-6)
    np.testing.assert_array_equal(inputs["spatial_shapes"], [[pixels.shape[2] // 8, pixels.shape[3] // 8]])


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path)
    change_json(folder / "config.json", max_image_length=15)
    with pytest.raises(VlmEdgeError, match="images have up to 24 patches: transformers picks those that are seen at"):
        FAMILY.image_processing(folder)
    change_json(folder / "config.json", max_image_length=24)
    assert FAMILY.image_processing(folder).longest_edge == 53
    change_json(folder / "preprocessor_config.json", size_divisor=12)
    with pytest.raises(VlmEdgeError, match=r"whole patches of 8 pixels; got .*size_divisor=12"):
        FAMILY.image_processing(folder)


def test_a_published_processors_settings(tmp_path: Path) -> None:
    """As dandelin/vilt-b32-finetuned-vqa's: the size is one number."""
    folder = checkpoint_of(tmp_path, PROCESSOR | {"size": 384, "size_divisor": 32})
    spec = FAMILY.image_processing(folder)
    assert (spec.shortest_edge, spec.longest_edge, spec.multiple_of) == (384, 639, 32)


def test_attention_sites(checkpoint: Path) -> None:
    sites = FAMILY.attention_sites(load_checkpoint(checkpoint).model)
    assert [(site.role, site.component) for site in sites] == [(AttentionRole.JOINT, "fusion")] * 2
    assert MODEL.__name__ in FAMILY.architectures
