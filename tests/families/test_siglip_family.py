"""SigLIP from a random checkpoint through export and the runtime, against transformers' processor and forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import (
    POSITIONS,
    Exported,
    change_json,
    least_cosine,
    photos,
)
from learning import batch_of, logits_of, sample
from tiny_dual_encoders import TEXTS
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm_edge.families import FAMILIES
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime import DualEncoderPipeline, load_pipeline
from vlm_edge.training.table import learner_of

SUBJECTS = ["SigLIP"]
FAMILY = FAMILIES["siglip"]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    """transformers' outputs for TEXTS and photos, through its own processor and tokenizer."""
    pixels = SiglipImageProcessorPil.from_pretrained(checkpoint)(images=photos(), return_tensors="pt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    assert set(texts) == {"input_ids"}
    with torch.no_grad():
        return transformers.SiglipModel.from_pretrained(checkpoint)(**pixels, **texts)


def test_embeddings_and_probabilities_are_transformers(subject: Exported, reference: Any, families_page: Any) -> None:
    folder, facts = subject.folder, subject.facts
    pipeline = load_pipeline(folder, threads=1)
    assert isinstance(pipeline, DualEncoderPipeline)
    cosine = min(
        least_cosine(pipeline.embed_images(photos()), reference.image_embeds),
        least_cosine(pipeline.embed_texts(TEXTS), reference.text_embeds),
    )
    families_page("SigLIP 2 at fixed resolution too", cosine=cosine)
    shares = pipeline.classify(photos(), TEXTS)
    np.testing.assert_allclose(shares, reference.logits_per_image.sigmoid(), atol=1e-5)
    assert facts["composed"]["max_relative_error"] < 1e-5


def test_the_manifest_says_how_texts_are_padded(subject: Exported) -> None:
    manifest = read_manifest(subject.folder)
    assert manifest.text is not None
    assert (manifest.text.pad_to, manifest.text.mask_padding) == (16, False)
    assert manifest.logit_bias is not None
    ids, mask = Tokenizer(subject.folder, manifest.text).encode(["blue"])
    assert ids.shape == (1, 16)
    assert mask.all()


def test_a_tokenizer_with_a_mask_masks_padding_on_its_side(checkpoint: Path, tmp_path: Path, reference: Any) -> None:
    """As SigLIP 2's, where its tokenizer says so: padded left, and masked."""
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change_json(tmp_path / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    change_json(tmp_path / "tokenizer_config.json", padding_side="left")
    spec = FAMILY.text_processing(tmp_path)
    assert spec is not None
    assert (spec.mask_padding, spec.padding_side) == (True, "left")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    ids, mask = Tokenizer(tmp_path, spec).encode(TEXTS)
    np.testing.assert_array_equal(ids, texts["input_ids"])
    np.testing.assert_array_equal(mask, texts["attention_mask"])
    loaded = load_checkpoint(tmp_path)
    module = FAMILY.components(loaded.model, FAMILY.image_processing(tmp_path))["text_encoder"].module
    with torch.no_grad():
        (embeds,) = module(torch.from_numpy(ids), torch.from_numpy(mask))
        model: Any = loaded.model
        expected = model.get_text_features(**texts).pooler_output
    torch.testing.assert_close(embeds, torch.nn.functional.normalize(expected, dim=-1))
    assert not torch.allclose(embeds, reference.text_embeds, atol=1e-3)


@torch.no_grad()
def test_logits_have_the_bias(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    learner = learner_of(loaded)
    pixels = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(4))
    batch = batch_of(learner, [sample("", "red")], [0], pixels, labels=("blue", "red"))
    assert batch.text["input_ids"].shape == (2, min(16, POSITIONS))
    model: Any = loaded.model
    expected = model(pixel_values=pixels, input_ids=batch.text["input_ids"]).logits_per_image
    torch.testing.assert_close(logits_of(learner, batch), expected)


def test_attention_sites_leave_the_pooling_out(checkpoint: Path) -> None:
    sites = FAMILY.attention_sites(load_checkpoint(checkpoint).model)
    assert [site.component for site in sites] == ["text_encoder"] * 2 + ["vision_encoder"] * 2
