"""CLIP's components against transformers' forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_checkpoints import Exported, least_cosine, photos
from tiny_dual_encoders import TEXTS
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.data.dataset import Sample
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.loading import load_checkpoint

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


def classified(label: str) -> Sample:
    return Sample(id=label, image=Path("x.png"), text="", answers=(label,))


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
    torch.testing.assert_close(FAMILY.encode_image(model, pixels()), expected.image_embeds)
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
def test_task_logits_are_logits_per_image(model: Any, tiny_clip: Path) -> None:
    samples = [classified("red"), classified("blue"), classified("red")]
    index = torch.tensor([0, 1, 1])
    batch = FAMILY.collate(
        samples, pixels(), index, tiny_clip, labels=("green", "blue", "red"), prompts=("a photo of {}", "{}")
    )
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 1, 2]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_clip)
    prompts = tokenizer([f"a photo of {label}" for label in ("green", "blue", "red")], return_tensors="pt")
    assert torch.equal(batch.input_ids, prompts["input_ids"])
    logits = FAMILY.task_logits(model, FAMILY.encode_image(model, batch.pixel_values), batch)
    reference = transformers.CLIPModel.from_pretrained(tiny_clip)(
        pixel_values=pixels(), input_ids=prompts["input_ids"], attention_mask=prompts["attention_mask"]
    )
    torch.testing.assert_close(logits, reference.logits_per_image[index])


def test_without_labels_the_batchs_own_classes_are_told_apart(tiny_clip: Path) -> None:
    samples = [classified("red"), classified("blue")]
    batch = FAMILY.collate(samples, pixels(), torch.tensor([0, 1]), tiny_clip)
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0]
    assert len(batch.input_ids) == 2
    with pytest.raises(VlmEdgeError, match="no label of the data set: red; labels: blue"):
        FAMILY.collate(samples, pixels(), torch.tensor([0, 1]), tiny_clip, labels=["blue"])


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
    batch = FAMILY.collate([classified("red")], pixels()[:1], torch.tensor([0]), tiny_clip).to(torch.device("meta"))
    assert batch.decoder_input_ids is None
    assert batch.labels is not None
    tensors = (batch.pixel_values, batch.image_index, batch.input_ids, batch.attention_mask, batch.labels)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    model = load_checkpoint(tiny_clip).model.to("meta")
    assert FAMILY.task_logits(model, FAMILY.encode_image(model, batch.pixel_values), batch).shape == (1, 1)
