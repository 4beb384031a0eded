"""BLIP's training path against transformers' forward, against each question asked alone, and the exported modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_edge.families.base import TrainingBatch
from vlm_edge.families.blip import TextEncoder, answer_logits, decoder_parts, question_slots
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.families.parts.cached_decoder import MaskedDecoder

IMAGES, TOKENS = 4, 6


@pytest.fixture(scope="module")
def model(tiny_blip: Path) -> Any:
    return load_checkpoint(tiny_blip).model.double()


@pytest.fixture
def features() -> Tensor:
    return torch.randn(IMAGES, 17, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def questions(image_index: list[int], lengths: list[int]) -> TrainingBatch:
    generator = torch.Generator().manual_seed(1)
    count = len(image_index)
    ids = torch.randint(6, 100, (count, TOKENS), generator=generator)
    mask = (torch.arange(TOKENS) < torch.tensor(lengths)[:, None]).long()
    answers = torch.randint(6, 100, (count, 2), generator=generator)
    return TrainingBatch(torch.zeros(0), torch.tensor(image_index), ids * mask, mask, answers, answers)


@torch.no_grad()
def test_without_padding_it_is_transformers_forward(model: Any, features: Tensor) -> None:
    batch = questions([2, 0, 2, 3, 2], [TOKENS] * 5)
    encoded = model.text_encoder(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        encoder_hidden_states=features[batch.image_index],
    ).last_hidden_state
    expected = model.text_decoder(
        input_ids=batch.decoder_input_ids, encoder_hidden_states=encoded, use_cache=False
    ).logits
    torch.testing.assert_close(answer_logits(model, features, batch), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_padded_question_has_the_answer_that_it_has_alone(model: Any, features: Tensor) -> None:
    index, lengths = [1, 1, 3, 1], [3, TOKENS, 2, 5]
    batch = questions(index, lengths)
    found = answer_logits(model, features, batch)
    for row, (image, length) in enumerate(zip(index, lengths, strict=True)):
        assert batch.decoder_input_ids is not None
        alone = TrainingBatch(
            torch.zeros(0),
            torch.tensor([0]),
            batch.input_ids[row : row + 1, :length],
            batch.attention_mask[row : row + 1, :length],
            batch.decoder_input_ids[row : row + 1],
        )
        expected = answer_logits(model, features[image : image + 1], alone)
        torch.testing.assert_close(found[row : row + 1], expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_it_is_what_the_exported_modules_compute(model: Any, features: Tensor) -> None:
    batch = questions([0, 1, 0, 2, 2, 2], [4, 6, 2, 3, 6, 5])
    cross = TextEncoder(model)(batch.input_ids, batch.attention_mask, features[batch.image_index])
    past = [torch.zeros(6, 4, 0, 8, dtype=torch.float64)] * 4
    tokens = torch.ones_like(batch.decoder_input_ids)
    decoder = MaskedDecoder(*decoder_parts(model))
    expected = decoder(batch.decoder_input_ids, tokens, batch.attention_mask, *cross, *past)[0]
    torch.testing.assert_close(answer_logits(model, features, batch), expected, rtol=0, atol=1e-10)


def test_gradients_reach_the_image_features(model: Any, features: Tensor) -> None:
    features.requires_grad_()
    answer_logits(model, features, questions([0, 2, 2], [6, 6, 3])).sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(dim=(1, 2)) > 0).tolist() == [True, False, True, False]


def test_question_slots_are_by_image_and_in_order() -> None:
    place, slots = question_slots(torch.tensor([2, 0, 2, 2, 0]), 4)
    assert slots == 3
    assert place.tolist() == [6, 0, 7, 8, 1]
