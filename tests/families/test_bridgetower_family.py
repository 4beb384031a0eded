"""BridgeTower through export and the runtime, against transformers' processor and forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import Exported, photos
from tiny_bridgetower import MODEL, checkpoint_of
from transformers.models.bridgetower.image_processing_pil_bridgetower import BridgeTowerImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.images import preprocess
from vlm_edge.runtime import MatchingPipeline, load_pipeline

SUBJECTS = ["BridgeTower"]
FAMILY = FAMILIES["bridgetower"]
TEXTS = ["a photo of a red circle", "blue", "is there a green triangle in this picture"]


def test_pairs_are_transformers(checkpoint: Path, subject: Exported, families_page: Any) -> None:
    folder, facts = subject.folder, subject.facts
    pipeline = load_pipeline(folder, threads=1)
    assert isinstance(pipeline, MatchingPipeline)
    reference = MODEL.from_pretrained(checkpoint, attn_implementation="eager")
    pixels = BridgeTowerImageProcessorPil.from_pretrained(checkpoint)(photos(), return_tensors="pt")
    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = reference.eval()(
            **pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).logits
    error = np.abs(pipeline.match(photos(), TEXTS) - expected.softmax(-1)[:, 1].numpy()).max()
    families_page("only with the head for image-text matching", score_error=float(error))
    assert facts["composed"]["pairs"] == 6
    assert list(facts["parity"]) == ["vision_encoder", "fusion"]
    with pytest.raises(VlmEdgeError, match="scores pairs of an image and a text"):
        pipeline.embed_images(photos())


@pytest.mark.parametrize("size", [(64, 64), (40, 57), (110, 41), (60, 150), (65, 64), (500, 501)])
def test_images_are_the_processors(checkpoint: Path, size: tuple[int, int]) -> None:
    """Sides are multiples of 32, the longer one bounded, and what is then too small is padded."""
    image = np.random.default_rng(5).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = BridgeTowerImageProcessorPil.from_pretrained(checkpoint)(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(preprocess([image], FAMILY.image_processing(checkpoint)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"share_cross_modal_transformer_layers": False}, {"link_tower_type": "interpolate"}]
)
def test_other_bridges(changes: dict[str, Any], tmp_path: Path) -> None:
    source = checkpoint_of(tmp_path, **changes)
    loaded = load_checkpoint(source)
    components = FAMILY.components(loaded.model, FAMILY.image_processing(source))
    asked = {name: components["fusion"].example[name] for name in ("input_ids", "attention_mask")}
    pixels = components["vision_encoder"].example
    with torch.no_grad():
        (features,) = components["vision_encoder"].module(*pixels.values())
        (logits,) = components["fusion"].module(*asked.values(), features)
        expected = FAMILY.reference(loaded.model, pixels | asked)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_attention_sites(checkpoint: Path) -> None:
    sites = FAMILY.attention_sites(load_checkpoint(checkpoint).model)
    assert len(sites) == 3 + 2 * 2 * 2
    assert sum(site.role is AttentionRole.CROSS for site in sites) == 4
    assert {site.component for site in sites} == {"fusion"}
