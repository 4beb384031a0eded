"""BLIP's questions about one image as one long row, against each asked alone, and with transformers' text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_edge.families.blip import TextEncoder, question_slots
from vlm_edge.families.loading import load_checkpoint

IMAGES, TOKENS = 4, 6


@pytest.fixture(scope="module")
def model(tiny_blip: Path) -> Any:
    return load_checkpoint(tiny_blip).model.double()


@pytest.fixture
def features() -> Tensor:
    return torch.randn(IMAGES, 17, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def questions(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask (questions, TOKENS)."""
    ids = torch.randint(6, 100, (len(lengths), TOKENS), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(TOKENS) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


@torch.no_grad()
def test_without_padding_it_is_transformers_text_encoder(model: Any, features: Tensor) -> None:
    index = torch.tensor([2, 0, 2, 3, 2])
    ids, mask = questions([TOKENS] * 5)
    encoded = model.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=features[index])
    expected = TextEncoder(model).key_values(encoded.last_hidden_state)
    for found, wanted in zip(TextEncoder(model).of_images(ids, mask, features, index), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@torch.no_grad()
def test_it_is_what_the_exported_module_computes(model: Any, features: Tensor) -> None:
    index = torch.tensor([1, 1, 3, 1])
    ids, mask = questions([3, TOKENS, 2, 5])
    expected = TextEncoder(model)(ids, mask, features[index])
    for found, wanted in zip(TextEncoder(model).of_images(ids, mask, features, index), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_gradients_reach_the_image_features(model: Any, features: Tensor) -> None:
    features.requires_grad_()
    ids, mask = questions([6, 6, 3])
    TextEncoder(model).of_images(ids, mask, features, torch.tensor([0, 2, 2]))[0].square().sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(dim=(1, 2)) > 0).tolist() == [True, False, True, False]


def test_question_slots_are_by_image_and_in_order() -> None:
    place, slots = question_slots(torch.tensor([2, 0, 2, 2, 0]), 4)
    assert slots == 3
    assert place.tolist() == [6, 0, 7, 8, 1]
