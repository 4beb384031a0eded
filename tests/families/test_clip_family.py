"""CLIP's components against transformers' forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_checkpoints import Exported, least_cosine, photos
from learning import batch_of, logits_of, sample
from tiny_dual_encoders import TEXTS
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.training.table import learner_of

SUBJECTS = ["CLIP"]
FAMILY = FAMILIES["clip"]


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> Any:
    return load_checkpoint(tiny_clip).model


@pytest.fixture(scope="module")
def texts(tiny_clip: Path) -> dict[str, Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_clip)
    encoded = tokenizer(["a photo of a red circle", "blue", "a green triangle"], padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def pixels() -> Tensor:
    return torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def test_embeddings_are_transformers(subject: Exported, families_page: Any) -> None:
    pixels = CLIPImageProcessorPil.from_pretrained(subject.checkpoint)(photos(), return_tensors="pt")
    texts = transformers.AutoTokenizer.from_pretrained(subject.checkpoint)(TEXTS, padding=True, return_tensors="pt")
    expected = subject.model(**pixels, input_ids=texts["input_ids"], attention_mask=texts["attention_mask"])
    cosine = min(
        least_cosine(subject.pipeline.embed_images(photos()), expected.image_embeds),
        least_cosine(subject.pipeline.embed_texts(TEXTS), expected.text_embeds),
    )
    families_page("open_clip's checkpoints too", cosine=cosine)


@torch.no_grad()
def test_components_are_forward(model: Any, texts: dict[str, Tensor], tiny_clip: Path) -> None:
    expected = transformers.CLIPModel.from_pretrained(tiny_clip)(pixel_values=pixels(), **texts)
    exports = FAMILY.components(model, FAMILY.image_processing(tiny_clip))
    (images,) = exports["vision_encoder"].module(pixels())
    (embeds,) = exports["text_encoder"].module(texts["input_ids"], texts["attention_mask"])
    torch.testing.assert_close(images, expected.image_embeds)
    torch.testing.assert_close(embeds, expected.text_embeds)
    scale = FAMILY.logit_scale(model)
    assert scale == pytest.approx(1 / 0.07, rel=1e-5)
    torch.testing.assert_close(images @ embeds.T * scale, expected.logits_per_image)


@torch.no_grad()
def test_the_old_end_token_means_the_largest_id(model: Any, tiny_clip: Path) -> None:
    """Configs from before transformers 4.31 say eos_token_id = 2 and pool at the largest id."""
    module = FAMILY.components(model, FAMILY.image_processing(tiny_clip))["text_encoder"].module
    ids = torch.tensor([[2, 40, 127, 9, 0], [2, 100, 50, 3, 0]])
    mask = (ids > 0).long()
    tower = model.text_model
    modern, tower.eos_token_id = tower.eos_token_id, 2
    try:
        expected = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        (embeds,) = module(ids, mask)
    finally:
        tower.eos_token_id = modern
    torch.testing.assert_close(embeds, torch.nn.functional.normalize(expected, dim=-1))


@torch.no_grad()
def test_logits_are_logits_per_image(tiny_clip: Path) -> None:
    learner = learner_of(load_checkpoint(tiny_clip))
    samples, index = [sample("", "red"), sample("", "blue"), sample("", "red")], [0, 1, 1]
    labels = ("green", "blue", "red")
    batch = batch_of(learner, samples, index, pixels(), labels=labels, prompts=("a photo of {}", "{}"))
    assert batch.labels.tolist() == [2, 1, 2]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_clip)
    prompts = tokenizer([f"a photo of {label}" for label in labels], return_tensors="pt")
    assert torch.equal(batch.text["input_ids"], prompts["input_ids"])
    reference = transformers.CLIPModel.from_pretrained(tiny_clip)(
        pixel_values=pixels(), input_ids=prompts["input_ids"], attention_mask=prompts["attention_mask"]
    )
    torch.testing.assert_close(logits_of(learner, batch), reference.logits_per_image[index])


def test_without_classes_the_texts_of_the_batch_are_told_apart(tiny_clip: Path) -> None:
    learner = learner_of(load_checkpoint(tiny_clip))
    batch = batch_of(learner, [sample("a dog"), sample("a red cat"), sample("a dog")], [0, 1, 1])
    assert batch.labels.tolist() == [0, 1, 0]
    assert len(batch.text["input_ids"]) == 2
    with pytest.raises(VlmEdgeError, match="no label of the data set: red; labels: blue"):
        batch_of(learner, [sample("", "red"), sample("", "blue")], [0, 1], labels=["blue"])


def test_attention_sites(model: Any) -> None:
    sites = FAMILY.attention_sites(model)
    assert {site.role for site in sites} == {AttentionRole.SELF}
    assert [site.component for site in sites] == ["text_encoder"] * 2 + ["vision_encoder"] * 2
    for site in sites:
        module = model.get_submodule(site.path)
        assert (getattr(module, site.num_heads_attr), site.head_dim) == (4, 8)
        assert all(model.get_submodule(part).weight.shape == (32, 32) for part in (site.q, site.k, site.v, site.out))


def test_image_processing_crops_the_middle(tiny_clip: Path) -> None:
    image = FAMILY.image_processing(tiny_clip)
    assert (image.height, image.width, image.shortest_edge, image.center_crop) == (32, 32, 32, True)
    assert FAMILY.generation(tiny_clip) is None


@torch.no_grad()
def test_batches_move_whole_and_no_mask_stays_behind(tiny_clip: Path) -> None:
    learner = learner_of(load_checkpoint(tiny_clip))
    batch = batch_of(learner, [sample("a dog")], [0], pixels()[:1]).to(torch.device("meta"))
    tensors = (batch.image_index, batch.labels, *batch.text.values(), *batch.pixels.values())
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    learner.to(torch.device("meta"))
    assert logits_of(learner, batch).shape == (1, 1)
