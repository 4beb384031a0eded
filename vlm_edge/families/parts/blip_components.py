"""BLIP's three graphs: vision_encoder, text_encoder, decoder.

The decoder's cross-attention reads only the encoded question, so its keys and values are computed once, at the end of
text_encoder, and the decoder is one graph for prefill and step. The attention is spelled out on the model's own
Linears, whose shapes pruning may have changed; masks are added as transformers adds them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.families.base import ComponentExport
from vlm_edge.families.parts.attention_masks import additive_mask, visible_tokens
from vlm_edge.families.parts.cached_decoder import BATCH, CachedLayer, MaskedDecoder, cross_key_values, cross_shapes
from vlm_edge.families.parts.text_decoders import BertLayer, bert_attention
from vlm_edge.processing.manifest import ImageProcessing

QUESTION_TOKENS = 7
"""Of the example inputs."""


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
        self.decoder_layers = nn.ModuleList(decoder_parts(model)[1])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor) -> tuple[Tensor, ...]:
        mask = additive_mask(visible_tokens(attention_mask))
        hidden = self.embeddings(input_ids=input_ids)
        for layer in self.layers:
            hidden = bert_attention(layer.attention, hidden, hidden, mask)
            hidden = bert_attention(layer.crossattention, hidden, image_features, None)
            hidden = layer.feed_forward_chunk(hidden)
        return cross_key_values(self.decoder_layers, hidden)  # type: ignore[arg-type]


class Embeddings(nn.Module):
    """input_ids and positions (batch, new) -> hidden (batch, new, width)."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden: Tensor = self.embeddings(input_ids=input_ids, position_ids=positions)
        return hidden


def decoder_parts(model: Any) -> tuple[nn.Module, list[CachedLayer], nn.Module]:
    """Embeddings, layers and head of a BLIP's text decoder, as :class:`CachedDecoder` takes them."""
    text = model.text_decoder
    return Embeddings(text.bert.embeddings), [BertLayer(layer) for layer in text.bert.encoder.layer], text.cls


class Decoder(MaskedDecoder):
    """BLIP's answer decoder, which reads the encoded question."""

    def __init__(self, model: Any) -> None:
        super().__init__(*decoder_parts(model))


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
    tokens = {0: "batch", 1: "question_tokens"}
    return ComponentExport(
        module=TextEncoder(model).eval(),
        example={
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "image_features": torch.randn((BATCH, image_tokens, image_hidden), generator=generator),
        },
        dynamic={"input_ids": tokens, "attention_mask": tokens, "image_features": {0: "batch"}},
        output_shapes=cross_shapes(decoder_parts(model)[1], "batch", "question_tokens"),
    )
