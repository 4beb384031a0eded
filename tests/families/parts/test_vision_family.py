"""DINOv2 and MobileViT v1, v2 through export and the runtime, against transformers' processors and forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import Exported, change_json, exported, least_cosine, photos, write_checkpoint
from tiny_towers import CASES, LABELS, Case, dinov2
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES, family_for
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime import EmbeddingPipeline, load_pipeline
from vlm_edge.surgery.heads import prune_heads
from vlm_edge.training.table import require_trainable

NAMES = {
    "DINOv2": ("dinov2", "positions are interpolated at export, for the processor's size"),
    "DINOv2, classes": ("dinov2 classes", "as DINOv2"),
    "MobileViT, classes": ("mobilevit", "at the processor's size alone"),
    "MobileViT v2": ("mobilevitv2", "as MobileViT; its attention has no heads to prune"),
}
"""The case of each row, and what differs."""
SUBJECTS = list(NAMES)


@pytest.fixture(scope="module")
def tower(subject: Exported) -> tuple[Case, Path, Path, Any]:
    """The case, its checkpoint, its graphs and what the export measured."""
    return CASES[NAMES[subject.name][0]], subject.checkpoint, subject.folder, subject.facts


def test_it_is_transformers_model(tower: tuple[Case, Path, Path, Any], subject: Exported, families_page: Any) -> None:
    case, source, folder, facts = tower
    pipeline = load_pipeline(folder, threads=1)
    assert isinstance(pipeline, EmbeddingPipeline)
    pixels = case.processor.from_pretrained(source)(photos(), return_tensors="pt")["pixel_values"]
    model = case.model.from_pretrained(source).eval()
    base = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        expected, outputs = base(pixels), model(pixels)
    cosine = least_cosine(pipeline.embed_images(photos()), expected.pooler_output)
    families_page(NAMES[subject.name][1], cosine=cosine)
    features = expected.last_hidden_state
    features = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
    scale = float(features.abs().max())
    np.testing.assert_allclose(pipeline.encode_images(photos()) / scale, features / scale, atol=1e-5)
    assert facts["composed"]["images"] == 6
    manifest = read_manifest(folder)
    assert {path.name for path in folder.iterdir()} == {"vision_encoder.onnx", "manifest.json"}
    assert manifest.text is None
    if "logits" in outputs:
        assert manifest.labels == ("circle", "square", "star")
        np.testing.assert_allclose(pipeline.classify(photos()), outputs.logits.softmax(-1), atol=1e-5)
    else:
        with pytest.raises(VlmEdgeError, match="has no classes: it embeds images"):
            pipeline.classify(photos())


def test_blue_comes_first_where_the_processor_says_so(tower: tuple[Case, Path, Path, Any]) -> None:
    case, _, folder, _ = tower
    assert read_manifest(folder).image.bgr is (case.processor is MobileViTImageProcessorPil)


def test_attention_sites_are_heads_that_can_be_pruned(tower: tuple[Case, Path, Path, Any]) -> None:
    """A head removed is that head's output set to zero."""
    _, source, _, _ = tower
    loaded = load_checkpoint(source)
    sites = loaded.family.attention_sites(loaded.model)
    if loaded.family.name == "mobilevitv2":
        assert sites == []
        return
    site = sites[-1]
    pixels = torch.randn((2, 3, 28 if "dino" in loaded.family.name else 32, 28 if "dino" in loaded.family.name else 32))
    masked: Any = load_checkpoint(source).model
    masked.get_submodule(site.out).weight.data[:, : site.head_dim] = 0
    prune_heads(loaded.model, site, list(range(1, site.num_heads)))
    base_pruned, base_masked = (getattr(m, m.base_model_prefix, m) for m in (loaded.model, masked))
    with torch.no_grad():
        actual, expected = (m(pixels).pooler_output for m in (base_pruned, base_masked))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_family_without_an_image_processor_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, transformers.Dinov2Model(dinov2()))
    with pytest.raises(VlmEdgeError, match="no usable image processor"):
        exported(tmp_path, tmp_path / "graphs")
    assert list((tmp_path / "graphs" / "out").iterdir()) == []


def test_what_a_tower_cannot_do() -> None:
    family = FAMILIES["dinov2"]
    assert family_for("Dinov2ForImageClassification") is family
    with pytest.raises(VlmEdgeError, match="dinov2: this family reads no text and answers nothing"):
        require_trainable(family)


def test_a_class_head_of_another_size_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, transformers.Dinov2ForImageClassification(dinov2(**LABELS)), CASES["dinov2"].image)
    change_json(tmp_path / "config.json", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    with pytest.raises(VlmEdgeError, match=r"of another shape.*classifier\.bias \(3,\) instead of \(2,\)"):
        load_checkpoint(tmp_path)
