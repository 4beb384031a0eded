"""CLIP, the dual encoder: Radford et al. 2021, arXiv:2103.00020, as transformers' CLIPModel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.checkpoints import open_clip
from vlm_edge.checkpoints.config import read_config, read_json_object
from vlm_edge.checkpoints.processors import image_processing_of
from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention import additive_mask, visible_past, visible_tokens
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.component import component, random_pixels, rows_component, text_example
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind

LEGACY_EOS = 2
"""Configs before transformers 4.31 say eos_token_id = 2, and mean the largest id in the text."""


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> image_embeds (images, dim), L2-normalised."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.projection = getattr(model, "visual_projection", nn.Identity())

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (normalize(self.projection(self.tower(pixel_values=pixel_values).pooler_output), dim=-1),)


class TextEncoder(nn.Module):
    """input_ids, attention_mask (texts, tokens) -> text_embeds (texts, dim), L2-normalised."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.text_model
        self.projection = getattr(model, "text_projection", nn.Identity())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        embeds, mask = self.tower.embeddings(input_ids=input_ids), self.mask(attention_mask)
        hidden = self.tower.encoder(embeds, attention_mask=mask).last_hidden_state
        return (normalize(self.projection(self.pooled(hidden, input_ids)), dim=-1),)

    def mask(self, attention_mask: Tensor) -> Tensor:
        """The additive mask of the text's attention: here every token sees those before it."""
        causal = visible_past(attention_mask.shape[1], 0, attention_mask.device)
        return additive_mask(causal * visible_tokens(attention_mask))

    def pooled(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        """The state that the text's embedding is made of: the first end token's, as CLIPTextModel pools it."""
        ends = input_ids if self.tower.eos_token_id == LEGACY_EOS else (input_ids == self.tower.eos_token_id)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        pooled: Tensor = self.tower.final_layer_norm(hidden)[rows, ends.to(torch.int32).argmax(dim=-1)]
        return pooled


class Clip(Family):
    """CLIPModel, with attention spelled out (``eager``): the exporter then writes the pattern that engines fuse.

    Relatives of CLIP differ in the classes below, and inherit the rest.
    """

    name = "clip"
    architectures: tuple[str, ...] = ("CLIPModel",)
    pipeline: PipelineKind = "dual_encoder"
    vision_tower_path = "vision_model"
    student_fits = True
    config_class: Any = CLIPConfig
    model_class: Any = CLIPModel
    image_processor_class: Any = CLIPImageProcessorPil
    vision_encoder_class: type[nn.Module] = VisionEncoder
    text_encoder_class: type[nn.Module] = TextEncoder

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return open_clip.rename(state) if open_clip.is_open_clip(state) else state

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        """The checkpoint's; of an open_clip folder without a processor's settings, what open_clip does."""
        settings = checkpoint / open_clip.CONFIG_NAME
        if settings.is_file() and not (checkpoint / "preprocessor_config.json").is_file():
            processor = open_clip.image_processor(read_json_object(settings), read_config(checkpoint))
            spec = image_processing_of(self.image_processor_class(**processor), checkpoint)
            return spec.model_copy(update={"transparency": "refuse"})  # open_clip resizes before it drops alpha
        return super().image_processing(checkpoint)

    def logit_scale(self, model: Any) -> float | None:
        return float(model.logit_scale.detach().exp())

    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        text = text_example(model.config.text_config.vocab_size)
        axes, embeds = {name: {0: "texts", 1: "tokens"} for name in text}, {"text_embeds": {0: "texts"}}
        pixels = self.vision_example(image)
        return {
            "vision_encoder": rows_component(self.vision_encoder_class(model), pixels, ["image_embeds"]),
            "text_encoder": component(self.text_encoder_class(model), text, axes, embeds),
        }

    def vision_example(self, image: ImageProcessing) -> dict[str, Tensor]:
        """Example inputs of the vision encoder."""
        return {"pixel_values": random_pixels(image)}

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        return model(**inputs).logits_per_image

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """Self-attention of both towers (of the text tower alone once the vision tower is replaced)."""
        return named_sites(model, {"text_model": "text_encoder", "": "vision_encoder"})
