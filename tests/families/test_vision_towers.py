"""DINOv2 and MobileViT v1, v2 through export and the runtime, against transformers' processors and forward."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import change_json, exported, least_cosine, photos, write_checkpoint
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES, family_for
from vlm_edge.families.checkpoint import load_checkpoint
from vlm_edge.numerics.attention_surgery import prune_heads
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime import EmbeddingPipeline, load_pipeline

LABELS = {"id2label": {0: "circle", 1: "square", 2: "star"}, "label2id": {"circle": 0, "square": 1, "star": 2}}
CROPPED = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}


@dataclass(frozen=True)
class Case:
    """A model class, its config and its processor."""

    model: Any
    config: Any
    processor: Any
    image: dict[str, Any]


def dinov2(**labels: Any) -> Any:
    """Trained at 56 x 56 (4 x 4 patches), asked for 28 x 42: its positions have to be interpolated."""
    return transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=56, patch_size=14, **labels
    )


def mobilevit(**labels: Any) -> Any:
    return transformers.MobileViTConfig(
        hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32], image_size=32, **labels
    )


CASES = {
    "dinov2": Case(
        transformers.Dinov2Model, dinov2(), BitImageProcessorPil,
        CROPPED | {"crop_size": {"height": 28, "width": 42}, "image_processor_type": "BitImageProcessor"},
    ),
    "dinov2 classes": Case(
        transformers.Dinov2ForImageClassification, dinov2(**LABELS), BitImageProcessorPil,
        CROPPED | {"crop_size": {"height": 28, "width": 28}, "image_processor_type": "BitImageProcessor"},
    ),
    "mobilevit": Case(
        transformers.MobileViTForImageClassification, mobilevit(**LABELS), MobileViTImageProcessorPil,
        CROPPED | {"image_processor_type": "MobileViTImageProcessor"},
    ),
    "mobilevitv2": Case(
        transformers.MobileViTV2Model, transformers.MobileViTV2Config(width_multiplier=0.25, image_size=64),
        MobileViTImageProcessorPil,
        CROPPED | {"crop_size": {"height": 64, "width": 64}, "image_processor_type": "MobileViTImageProcessor"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(CASES))
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path, Path, Any]:
    """The case, its checkpoint, its graphs and what the export measured."""
    case = CASES[request.param]
    source = tmp_path_factory.mktemp("source")
    write_checkpoint(source, case.model(case.config), case.image)
    for path in source.glob("token*"):
        path.unlink()
    return (case, source, *exported(source, tmp_path_factory.mktemp("graphs")))


def test_it_is_transformers_model(tower: tuple[Case, Path, Path, Any]) -> None:
    case, source, folder, facts = tower
    pipeline = load_pipeline(folder, threads=1)
    assert isinstance(pipeline, EmbeddingPipeline)
    pixels = case.processor.from_pretrained(source)(photos(), return_tensors="pt")["pixel_values"]
    model = case.model.from_pretrained(source).eval()
    base = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        expected, outputs = base(pixels), model(pixels)
    assert least_cosine(pipeline.embed_images(photos()), expected.pooler_output) > 1 - 1e-5
    features = expected.last_hidden_state
    features = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
    scale = float(features.abs().max())
    np.testing.assert_allclose(pipeline.encode_images(photos()) / scale, features / scale, atol=1e-5)
    assert facts["parity"]["vision_encoder"]["max_relative_error"] < 1e-4
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
    with pytest.raises(VlmEdgeError, match="dinov2: this family can be exported, not trained"):
        family.encode_image(torch.nn.Identity(), torch.zeros(1))


def test_a_class_head_of_another_size_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, transformers.Dinov2ForImageClassification(dinov2(**LABELS)), CASES["dinov2"].image)
    change_json(tmp_path / "config.json", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    with pytest.raises(VlmEdgeError, match=r"of another shape.*classifier\.bias \(3,\) instead of \(2,\)"):
        load_checkpoint(tmp_path)
