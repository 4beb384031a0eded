"""Encoder-decoders whose text encoder reads the image's tokens before the question's: BLIP-2 with a T5, Florence-2."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.families.base import ComponentExport, Family
from vlm_edge.families.parts.cached_decoder import CrossKeyValues, MaskedDecoder, cached_decoder_export
from vlm_edge.families.parts.component import image_component, question_component, text_example
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind

MASK, MEMORY_TOKENS = "encoder_attention_mask", "memory_tokens"


class TextEncoder(nn.Module):
    """input_ids, attention_mask (batch, question_tokens), image_features (batch, image_tokens, width) ->
    encoder_attention_mask (batch, image_tokens + question_tokens), and the decoder's cross-attention keys and values
    of as many tokens.

    Args:
        embeddings: input_ids -> (batch, question_tokens, width).
        encoder: (embeds, mask) -> the last hidden states.
        layers: the decoder's.
    """

    def __init__(self, embeddings: nn.Module, encoder: nn.Module, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder
        self.key_values = CrossKeyValues(layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor) -> tuple[Tensor, ...]:
        seen = torch.cat([attention_mask.new_ones(image_features.shape[:2]), attention_mask], dim=1)
        memory = self.encoder(torch.cat([image_features, self.embeddings(input_ids)], dim=1), seen)
        return (seen, *self.key_values(memory))


class ImagePrefixFamily(Family):
    """Three graphs: the image's tokens, the encoder of those and the question, the decoder."""

    pipeline: PipelineKind = "vqa"

    @abstractmethod
    def vision_encoder(self, model: Any) -> nn.Module:
        """pixel_values (images, 3, height, width) -> image_features (images, image_tokens, width)."""

    @abstractmethod
    def text_encoder(self, model: Any, layers: Iterable[nn.Module]) -> TextEncoder:
        """The encoder, for the decoder's ``layers``."""

    @abstractmethod
    def decoder(self, model: Any) -> MaskedDecoder:
        """The text decoder."""

    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        vision = image_component(self.vision_encoder(model), image, "image_features")
        vocabulary, decoder = model.config.text_config.vocab_size, self.decoder(model).eval()
        encoder = self.text_encoder(model, decoder.layers)
        memory = f"{vision.output_shapes['image_features'][1]} + question_tokens"
        outputs = {MASK: {0: "batch", 1: memory}} | encoder.key_values.axes("batch", memory)
        return {
            "vision_encoder": vision,
            "text_encoder": question_component(encoder, vision, text_example(vocabulary), outputs),
            "decoder": cached_decoder_export(decoder, vocabulary, MEMORY_TOKENS, MASK),
        }


def with_places(inputs: Mapping[str, Tensor], tokens: int, token_id: int) -> dict[str, Tensor]:
    """A prompt's ids and mask with an image's ``tokens`` placeholders before them, as processors put them."""
    places = inputs["input_ids"].new_full((len(inputs["input_ids"]), tokens), token_id)
    return {
        **inputs,
        "input_ids": torch.cat([places, inputs["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones_like(places), inputs["attention_mask"]], dim=1),
    }
