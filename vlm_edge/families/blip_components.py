"""BLIP's three graphs: vision_encoder, text_encoder, decoder.

The decoder's cross-attention reads only the encoded question, so its keys and values are computed once, at the end of
text_encoder, and the decoder is one graph for prefill and step. The attention is spelled out on the model's own
Linears, whose shapes pruning may have changed; masks are added as transformers adds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.families.attention_masks import additive_mask, visible_past, visible_tokens
from vlm_edge.families.base import ComponentExport
from vlm_edge.processing.manifest import ImageProcessing

BATCH, QUESTION_TOKENS, NEW, PAST = 2, 7, 3, 5
"""Sizes of the example inputs; all differ, so that no two dynamic dimensions are taken for one."""


def _heads(states: Tensor, head_dim: int) -> Tensor:
    """(batch, tokens, heads x head_dim) -> (batch, heads, tokens, head_dim)."""
    batch, tokens, _ = states.shape
    return states.view(batch, tokens, -1, head_dim).transpose(1, 2)


def attend(attention: Any, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """One BlipTextAttention with given keys and values: softmax(q k^T / sqrt(head_dim) + mask) v, then its output."""
    module = attention.self
    query = _heads(module.query(hidden), module.attention_head_size)
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(module.attention_head_size)
    if mask is not None:
        scores = scores + mask
    context = torch.matmul(torch.softmax(scores, dim=-1), value).transpose(1, 2)
    batch, tokens, heads, head_dim = context.shape
    result: Tensor = attention.output(context.reshape(batch, tokens, heads * head_dim), hidden)
    return result


def key_value(attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (batch, heads, tokens, head_dim) of one BlipTextAttention for ``states``."""
    module = attention.self
    return (
        _heads(module.key(states), module.attention_head_size),
        _heads(module.value(states), module.attention_head_size),
    )


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> image_features (images, tokens, hidden)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.tower(pixel_values=pixel_values).last_hidden_state,)


class TextEncoder(nn.Module):
    """input_ids, attention_mask (batch, question_tokens), image_features (batch, tokens, hidden) -> the decoder's
    cross-attention keys and values, layer by layer, each (batch, heads, question_tokens, head_dim)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embeddings = model.text_encoder.embeddings
        self.layers = model.text_encoder.encoder.layer
        self.cross_attentions = nn.ModuleList([layer.crossattention for layer in model.text_decoder.bert.encoder.layer])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor) -> tuple[Tensor, ...]:
        mask = additive_mask(visible_tokens(attention_mask))
        hidden = self.embeddings(input_ids=input_ids)
        for layer in self.layers:
            hidden = attend(layer.attention, hidden, *key_value(layer.attention, hidden), mask)
            hidden = attend(layer.crossattention, hidden, *key_value(layer.crossattention, image_features), None)
            hidden = layer.feed_forward_chunk(hidden)
        return tuple(tensor for cross in self.cross_attentions for tensor in key_value(cross, hidden))


class Decoder(nn.Module):
    """input_ids (batch, new), attention_mask (batch, question_tokens), then cross_key_values.{layer}.key|value and
    past_key_values.{layer}.key|value -> logits (batch, new, vocab), present.{layer}.key|value."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embeddings = model.text_decoder.bert.embeddings
        self.layers = model.text_decoder.bert.encoder.layer
        self.head = model.text_decoder.cls

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        return self.decode(input_ids, additive_mask(visible_tokens(attention_mask)), caches)

    def decode(self, input_ids: Tensor, cross_mask: Tensor | None, caches: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As ``forward``, with what is added to the scores of cross-attention; nothing, where it sees everything."""
        count = 2 * len(self.layers)
        crosses, pasts = caches[:count], caches[count:]
        new, past = input_ids.shape[1], pasts[0].shape[2]
        self_mask = additive_mask(visible_past(new, past, input_ids.device))
        hidden = self.embeddings(input_ids=input_ids, past_key_values_length=past)
        presents: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            key, value = key_value(layer.attention, hidden)
            key = torch.cat([pasts[2 * index], key], dim=2)
            value = torch.cat([pasts[2 * index + 1], value], dim=2)
            presents += [key, value]
            hidden = attend(layer.attention, hidden, key, value, self_mask)
            key, value = crosses[2 * index], crosses[2 * index + 1]
            hidden = attend(layer.crossattention, hidden, key, value, cross_mask)
            hidden = layer.feed_forward_chunk(hidden)
        return (self.head(hidden), *presents)


def cache_names(prefix: str, layers: int) -> list[str]:
    """``PREFIX.{layer}.key`` and ``.value``, layer by layer."""
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def cache_shapes(attentions: list[Any]) -> list[tuple[int, int]]:
    """(heads, head_dim) of every layer's key and value."""
    sizes = [(module.self.num_attention_heads, module.self.attention_head_size) for module in attentions]
    return [size for size in sizes for _ in ("key", "value")]


def question(model: Any, generator: torch.Generator, tokens: int) -> tuple[Tensor, Tensor]:
    """Random ids (BATCH, tokens), and a mask that pads the last two tokens of the last row."""
    vocabulary = model.text_encoder.embeddings.word_embeddings.num_embeddings
    mask = torch.ones((BATCH, tokens), dtype=torch.int64)
    mask[-1, -2:] = 0
    return torch.randint(0, vocabulary, (BATCH, tokens), generator=generator), mask


def vision_encoder_export(model: Any, image: ImageProcessing) -> ComponentExport:
    pixels = torch.randn((BATCH, 3, image.height, image.width), generator=torch.Generator().manual_seed(0))
    module = VisionEncoder(model).eval()
    with torch.no_grad():
        (features,) = module(pixels)
    return ComponentExport(
        module=module,
        example={"pixel_values": pixels},
        dynamic={"pixel_values": {0: "images"}},
        output_shapes={"image_features": ("images", features.shape[1], features.shape[2])},
    )


def text_encoder_export(model: Any, image_tokens: int, image_hidden: int) -> ComponentExport:
    generator = torch.Generator().manual_seed(1)
    input_ids, attention_mask = question(model, generator, QUESTION_TOKENS)
    layers = model.text_decoder.bert.encoder.layer
    shapes = cache_shapes([layer.crossattention for layer in layers])
    return ComponentExport(
        module=TextEncoder(model).eval(),
        example={
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "image_features": torch.randn((BATCH, image_tokens, image_hidden), generator=generator),
        },
        dynamic={
            "input_ids": {0: "batch", 1: "question_tokens"},
            "attention_mask": {0: "batch", 1: "question_tokens"},
            "image_features": {0: "batch"},
        },
        output_shapes={
            name: ("batch", heads, "question_tokens", head_dim)
            for name, (heads, head_dim) in zip(cache_names("cross_key_values", len(layers)), shapes, strict=True)
        },
    )


def decoder_export(model: Any) -> ComponentExport:
    generator = torch.Generator().manual_seed(2)
    layers = model.text_decoder.bert.encoder.layer
    cross_shapes = cache_shapes([layer.crossattention for layer in layers])
    self_shapes = cache_shapes([layer.attention for layer in layers])
    cross_names, past_names = (cache_names(name, len(layers)) for name in ("cross_key_values", "past_key_values"))
    present_names = cache_names("present", len(layers))
    input_ids, _ = question(model, generator, NEW)
    _, attention_mask = question(model, generator, QUESTION_TOKENS)
    example = {"input_ids": input_ids, "attention_mask": attention_mask}
    dynamic = {"input_ids": {0: "batch", 1: "new"}, "attention_mask": {0: "batch", 1: "question_tokens"}}
    for name, (heads, head_dim) in zip(cross_names, cross_shapes, strict=True):
        example[name] = torch.randn((BATCH, heads, QUESTION_TOKENS, head_dim), generator=generator)
        dynamic[name] = {0: "batch", 2: "question_tokens"}
    for name, (heads, head_dim) in zip(past_names, self_shapes, strict=True):
        example[name] = torch.randn((BATCH, heads, PAST, head_dim), generator=generator)
        dynamic[name] = {0: "batch", 2: "past"}
    vocabulary = model.text_decoder.cls.predictions.decoder.out_features
    return ComponentExport(
        module=Decoder(model).eval(),
        example=example,
        dynamic=dynamic,
        output_shapes={"logits": ("batch", "new", vocabulary)}
        | {
            name: ("batch", heads, "past + new", head_dim)
            for name, (heads, head_dim) in zip(present_names, self_shapes, strict=True)
        },
        may_be_empty=frozenset({"past"}),
    )
