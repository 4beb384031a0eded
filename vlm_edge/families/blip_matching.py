"""BLIP for image-text matching: Li et al. 2022, arXiv:2201.12086, as transformers' BlipForImageTextRetrieval.

The text encoder runs twice: alone, for embeddings to search by (the ITC loss), and with cross-attention to the image,
for pairs to be judged (the ITM loss). These are two graphs, text_encoder and fusion, each with its own copy of the
weights that they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.checkpoints.config import read_config
from vlm_edge.checkpoints.processors import read_image_processing, read_text_processing
from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention_masks import additive_mask, visible_tokens
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.blip_components import QUESTION_TOKENS, question
from vlm_edge.families.parts.cached_decoder import BATCH
from vlm_edge.families.parts.text_decoders import bert_attention
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind, TextProcessing

LABELS = ("no match", "match")


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> image_features (images, tokens, hidden), image_embeds (images, dim),
    L2-normalised."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.projection = model.vision_proj

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        features = self.tower(pixel_values=pixel_values).last_hidden_state
        return features, normalize(self.projection(features[:, 0]), dim=-1)


class TextEncoder(nn.Module):
    """input_ids, attention_mask (texts, tokens) -> text_embeds (texts, dim), L2-normalised."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embeddings = model.text_encoder.embeddings
        self.layers = model.text_encoder.encoder.layer
        self.projection = model.text_proj

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        mask = additive_mask(visible_tokens(attention_mask))
        hidden = self.embeddings(input_ids=input_ids)
        for layer in self.layers:
            hidden = bert_attention(layer.attention, hidden, hidden, mask)
            hidden = layer.feed_forward_chunk(hidden)
        return (normalize(self.projection(hidden[:, 0]), dim=-1),)


class Fusion(nn.Module):
    """input_ids, attention_mask (batch, question_tokens), image_features (batch, tokens, hidden) -> logits (batch, 2):
    no match, match."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embeddings = model.text_encoder.embeddings
        self.layers = model.text_encoder.encoder.layer
        self.head = model.itm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor) -> tuple[Tensor]:
        mask = additive_mask(visible_tokens(attention_mask))
        hidden = self.embeddings(input_ids=input_ids)
        for layer in self.layers:
            hidden = bert_attention(layer.attention, hidden, hidden, mask)
            hidden = bert_attention(layer.crossattention, hidden, image_features, None)
            hidden = layer.feed_forward_chunk(hidden)
        return (self.head(hidden[:, 0]),)


class BlipMatching(Family):
    """BlipForImageTextRetrieval."""

    name = "blip-matching"
    architectures: tuple[str, ...] = ("BlipForImageTextRetrieval",)
    pipeline: PipelineKind = "matching"
    vision_tower_path = "vision_model"

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        model: nn.Module = BlipForImageTextRetrieval(BlipConfig.from_dict(dict(config)))
        return model

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        tower = BlipConfig.from_dict(read_config(checkpoint)).vision_config
        return read_image_processing(checkpoint, BlipImageProcessorPil, tower)

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        text = BlipConfig.from_dict(read_config(checkpoint)).text_config
        return read_text_processing(checkpoint, text.max_position_embeddings)

    def labels(self, model: nn.Module) -> tuple[str, ...] | None:
        return LABELS

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn((BATCH, 3, image.height, image.width), generator=generator)
        input_ids, attention_mask = question(model, generator, QUESTION_TOKENS)
        text = {"input_ids": input_ids, "attention_mask": attention_mask}
        vision = VisionEncoder(model).eval()
        with torch.no_grad():
            features, embeds = vision(pixels)
        texts, tokens = {0: "texts", 1: "tokens"}, {0: "batch", 1: "question_tokens"}
        return {
            "vision_encoder": ComponentExport(
                module=vision,
                example={"pixel_values": pixels},
                dynamic={"pixel_values": {0: "images"}},
                output_shapes={
                    "image_features": ("images", *features.shape[1:]),
                    "image_embeds": ("images", embeds.shape[1]),
                },
            ),
            "text_encoder": ComponentExport(
                module=TextEncoder(model).eval(),
                example=text,
                dynamic=dict.fromkeys(text, texts),
                output_shapes={"text_embeds": ("texts", embeds.shape[1])},
            ),
            "fusion": ComponentExport(
                module=Fusion(model).eval(),
                example=text | {"image_features": features},
                dynamic=dict.fromkeys(text, tokens) | {"image_features": {0: "batch"}},
                output_shapes={"logits": ("batch", len(LABELS))},
            ),
        }

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """The head's logits (pairs, 2); with ``use_itm_head=False`` the cosines (images, texts)."""
        inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        return model(**inputs, **settings).itm_score

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """Self- and cross-attention of the text encoder; the vision tower's is fused."""
        return named_sites(model, lambda _: "fusion")
