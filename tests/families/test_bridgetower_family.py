"""BridgeTower through export and the runtime, against transformers' processor and forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import PAD, VOCABULARY, exported, photos, write_checkpoint
from transformers.models.bridgetower.image_processing_pil_bridgetower import BridgeTowerImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.checkpoint import load_checkpoint
from vlm_edge.processing.images import preprocess
from vlm_edge.runtime import MatchingPipeline, load_pipeline

FAMILY = FAMILIES["bridgetower"]
TEXTS = ["a photo of a red circle", "blue", "is there a green triangle in this picture"]
IMAGE = {
    "image_processor_type": "BridgeTowerImageProcessor", "size": {"shortest_edge": 64},
    "crop_size": {"shortest_edge": 64}, "size_divisor": 32,
}  # fmt: skip


def model(**changes: Any) -> Any:
    """Three layers in each tower, of which the upper two are bridged; eager, as the family builds it."""
    text = {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
        "vocab_size": VOCABULARY, "max_position_embeddings": 26, "pad_token_id": PAD,
    }  # fmt: skip
    config = transformers.BridgeTowerConfig(
        text_config=text,
        vision_config={"hidden_size": 64, "num_hidden_layers": 3, "image_size": 64, "patch_size": 32},
        hidden_size=64, num_attention_heads=4, num_hidden_layers=2, **changes,
    )  # fmt: skip
    return transformers.BridgeTowerForImageAndTextRetrieval(config)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("bridgetower"), model(), IMAGE)


@pytest.fixture(scope="module")
def graphs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return exported(checkpoint, tmp_path_factory.mktemp("bridgetower-graphs"))


def test_pairs_are_transformers(checkpoint: Path, graphs: Any) -> None:
    folder, facts = graphs
    pipeline = load_pipeline(folder, threads=1)
    assert isinstance(pipeline, MatchingPipeline)
    reference = transformers.BridgeTowerForImageAndTextRetrieval.from_pretrained(
        checkpoint, attn_implementation="eager"
    )
    pixels = BridgeTowerImageProcessorPil.from_pretrained(checkpoint)(photos(), return_tensors="pt")
    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = reference.eval()(
            **pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).logits
    np.testing.assert_allclose(pipeline.match(photos(), TEXTS), expected.softmax(-1)[:, 1], atol=1e-5)
    assert facts["composed"]["pairs"] == 6
    assert list(facts["parity"]) == ["vision_encoder", "fusion"]
    assert max(parity["max_relative_error"] for parity in facts["parity"].values()) < 1e-5
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
    source = write_checkpoint(tmp_path, model(**changes), IMAGE)
    loaded = load_checkpoint(source)
    components = FAMILY.components(loaded.model, FAMILY.image_processing(source))
    example = components["fusion"].example
    pixels = components["vision_encoder"].example["pixel_values"]
    with torch.no_grad():
        (features,) = components["vision_encoder"].module(pixels)
        (logits,) = components["fusion"].module(example["input_ids"], example["attention_mask"], features)
        expected = FAMILY.reference(loaded.model, pixels, example["input_ids"], example["attention_mask"])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_attention_sites(checkpoint: Path) -> None:
    sites = FAMILY.attention_sites(load_checkpoint(checkpoint).model)
    assert len(sites) == 3 + 2 * 2 * 2
    assert sum(site.role is AttentionRole.CROSS for site in sites) == 4
    assert {site.component for site in sites} == {"fusion"}
