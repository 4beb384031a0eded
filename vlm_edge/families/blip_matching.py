"""BLIP for image-text matching: Li et al. 2022, arXiv:2201.12086, as transformers' BlipForImageTextRetrieval.

The text encoder runs twice: alone, for embeddings to search by (the ITC loss), and with cross-attention to the image,
for pairs to be judged (the ITM loss). These are two graphs, text_encoder and fusion, each with its own copy of the
weights that they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention import padding_mask
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.component import component, image_component, question_component, text_example
from vlm_edge.families.parts.text_decoders import bert_layer
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind

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
        mask = padding_mask(attention_mask)
        hidden = self.embeddings(input_ids=input_ids)
        for layer in self.layers:
            hidden = bert_layer(layer, hidden, mask)
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
        mask = padding_mask(attention_mask)
        hidden = self.embeddings(input_ids=input_ids)
        for layer in self.layers:
            hidden = bert_layer(layer, hidden, mask, image_features)
        return (self.head(hidden[:, 0]),)


class BlipMatching(Family):
    """BlipForImageTextRetrieval."""

    name = "blip-matching"
    architectures: tuple[str, ...] = ("BlipForImageTextRetrieval",)
    pipeline: PipelineKind = "matching"
    config_class: Any = BlipConfig
    model_class: Any = BlipForImageTextRetrieval
    image_processor_class: Any = BlipImageProcessorPil
    vision_tower_path = "vision_model"
    student_fits = True

    def labels(self, model: Any) -> tuple[str, ...] | None:
        return LABELS

    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        vision = image_component(VisionEncoder(model), image, "image_features", "image_embeds")
        text = text_example(model.text_encoder.embeddings.word_embeddings.num_embeddings)
        axes, embeds = {name: {0: "texts", 1: "tokens"} for name in text}, {"text_embeds": {0: "texts"}}
        return {
            "vision_encoder": vision,
            "text_encoder": component(TextEncoder(model), text, axes, embeds),
            "fusion": question_component(Fusion(model), vision, text, {"logits": {0: "batch"}}),
        }

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """The head's logits (pairs, 2); with ``use_itm_head=False`` the cosines (images, texts)."""
        return model(**inputs, **settings).itm_score

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """Self- and cross-attention of the text encoder; the vision tower's is fused."""
        return named_sites(model, {"": "fusion"})
