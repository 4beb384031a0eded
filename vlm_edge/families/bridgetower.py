"""BridgeTower: Xu et al. 2022, arXiv:2206.08657, as transformers' BridgeTowerForImageAndTextRetrieval.

A ViT and a RoBERTa, whose upper layers each feed a layer of two streams that attend to each other. What depends on the
image alone is computed in vision_encoder, for every bridge; the texts and the fusion are one graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BridgeTowerConfig, BridgeTowerForImageAndTextRetrieval
from transformers.models.bridgetower.image_processing_pil_bridgetower import BridgeTowerImageProcessorPil

from vlm_edge.checkpoints.processors import image_processing_of, read_text_processing
from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention import padding_mask
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.component import image_component, question_component, text_example
from vlm_edge.families.parts.text_decoders import bert_layer
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind, TextProcessing

LABELS = ("no match", "match")


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> image_features (images, bridges, tokens, hidden): what each fusion
    layer takes of the image."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.first = len(base.vision_model.visual.transformer.resblocks) - len(base.cross_modal_image_layers)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        visual = self.base.vision_model.visual
        kind = self.base.token_type_embeddings.weight[1]
        hidden = visual.forward_pre(pixel_values)
        bridges = []
        for index, block in enumerate(visual.transformer.resblocks):
            hidden = block(hidden)
            if index >= self.first:
                states = self.base._apply_image_transform(visual.forward_post(hidden), index - self.first)
                bridges.append(states + kind)
        return (torch.stack(bridges, dim=1),)


class Fusion(nn.Module):
    """input_ids, attention_mask (batch, question_tokens), image_features (batch, bridges, tokens, hidden) -> logits
    (batch, 2): no match, match."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base = model.bridgetower
        self.head = model.itm_score
        self.first = len(self.base.text_model.encoder.layer) - len(self.base.cross_modal_text_layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor) -> tuple[Tensor]:
        base = self.base
        mask = padding_mask(attention_mask)
        kind = base.token_type_embeddings.weight[0]
        hidden = base.text_model.embeddings(input_ids=input_ids)
        text = image = hidden
        for index, layer in enumerate(base.text_model.encoder.layer):
            hidden = bert_layer(layer, hidden, mask)
            bridge = index - self.first
            if bridge < 0:
                continue
            new_text = base._apply_text_transform(hidden, bridge) + kind
            new_image = image_features[:, bridge]
            if bridge == 0:
                text, image = base.cross_modal_text_layernorm(new_text), base.cross_modal_image_layernorm(new_image)
            else:
                text = base.cross_modal_text_link_tower[bridge - 1](new_text, text, None)
                image = base.cross_modal_image_link_tower[bridge - 1](new_image, image, None)
            text, image = (
                bert_layer(base.cross_modal_text_layers[bridge], text, mask, image),
                bert_layer(base.cross_modal_image_layers[bridge], image, None, text, mask),
            )
        return (self.head(base.get_cls_features(text, image)),)


class BridgeTower(Family):
    """BridgeTowerForImageAndTextRetrieval. The vision tower's attention is fused (nn.MultiheadAttention)."""

    name = "bridgetower"
    architectures: tuple[str, ...] = ("BridgeTowerForImageAndTextRetrieval",)
    pipeline: PipelineKind = "matching"
    config_class: Any = BridgeTowerConfig
    model_class: Any = BridgeTowerForImageAndTextRetrieval
    image_processor_class: Any = BridgeTowerImageProcessorPil
    vision_tower_path = "bridgetower.vision_model"

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        """Resized as the processor does, which bounds the longer side at 1333 / 800 of the shorter."""
        processor = self.image_processor(checkpoint)
        longest = int(1333 / 800 * processor.size.get("shortest_edge", 0)) or None
        return image_processing_of(processor, checkpoint, longest_edge=longest)

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        """RoBERTa counts positions from the padding id + 1 on."""
        text = self.config(checkpoint).text_config
        return read_text_processing(checkpoint, text.max_position_embeddings - text.pad_token_id - 1)

    def labels(self, model: Any) -> tuple[str, ...] | None:
        return LABELS

    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        vision = image_component(VisionEncoder(model.bridgetower), image, "image_features")
        text = model.config.text_config
        example = text_example(text.vocab_size, least=text.pad_token_id + 1)
        fusion = question_component(Fusion(model), vision, example, {"logits": {0: "batch"}})
        return {"vision_encoder": vision, "fusion": fusion}

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        return model(**inputs).logits

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """RoBERTa's self-attention, and both streams' self- and cross-attention."""
        return named_sites(model, {"": "fusion"})
