"""BLIP's answers while it trains: what the exported graphs compute, for many questions about few images.

Cross-attention to hundreds of image tokens costs far more than a question of ten tokens does, so an image's keys and
values are computed once, and all questions about it attend to them as one long row. transformers' ``forward`` repeats
the image for every question, and (5.23) drops the mask on the way into the decoder's cross-attention, so that a
question padded in a batch gets another answer than alone; here padding is masked, as in the exported decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm_edge.families.base import TrainingBatch
from vlm_edge.families.parts.attention_masks import additive_mask, visible_tokens
from vlm_edge.families.parts.text_decoders import bert_attention


def answer_logits(model: Any, image_features: Tensor, batch: TrainingBatch) -> Tensor:
    """Teacher-forced logits (questions, answer_tokens, vocab); ``image_features`` is (images, tokens, hidden)."""
    question = encode_questions(model, image_features, batch)
    question_mask = additive_mask(visible_tokens(batch.attention_mask))
    assert batch.decoder_input_ids is not None
    length = batch.decoder_input_ids.shape[1]
    causal_mask = additive_mask(torch.ones(length, length, device=question.device).tril())
    hidden: Tensor = model.text_decoder.bert.embeddings(input_ids=batch.decoder_input_ids)
    for layer in model.text_decoder.bert.encoder.layer:
        hidden = bert_attention(layer.attention, hidden, hidden, causal_mask)
        hidden = bert_attention(layer.crossattention, hidden, question, question_mask)
        hidden = layer.feed_forward_chunk(hidden)
    logits: Tensor = model.text_decoder.cls(hidden)
    return logits


def encode_questions(model: Any, image_features: Tensor, batch: TrainingBatch) -> Tensor:
    """The text encoder's last hidden state (questions, question_tokens, hidden).

    Every image gets as many slots as the most asked one; a slot without a question is computed and left out.
    """
    images, tokens = len(image_features), batch.input_ids.shape[1]
    place, slots = question_slots(batch.image_index, images)
    input_ids, attention_mask = (batch.input_ids.new_zeros(images * slots, tokens) for _ in range(2))
    input_ids[place], attention_mask[place] = batch.input_ids, batch.attention_mask
    mask = additive_mask(visible_tokens(attention_mask))
    hidden: Tensor = model.text_encoder.embeddings(input_ids=input_ids)
    for layer in model.text_encoder.encoder.layer:
        hidden = bert_attention(layer.attention, hidden, hidden, mask)
        of_image = hidden.view(images, slots * tokens, -1)
        of_image = bert_attention(layer.crossattention, of_image, image_features, None)
        hidden = layer.feed_forward_chunk(of_image.view(images * slots, tokens, -1))
    return hidden[place]


def question_slots(image_index: Tensor, images: int) -> tuple[Tensor, int]:
    """Each question's row among ``images * slots`` rows, image by image and in order, and ``slots``."""
    counts = torch.bincount(image_index, minlength=images)
    order = torch.argsort(image_index, stable=True)
    first = counts.cumsum(0) - counts
    position = torch.empty_like(image_index)
    position[order] = torch.arange(len(image_index), device=image_index.device) - first[image_index[order]]
    slots = int(counts.max())
    return image_index * slots + position, slots
