"""Llama 3.2 Vision: Grattafiori et al. 2024, arXiv:2407.21783, section 7, as transformers'
MllamaForConditionalGeneration.

An image is up to four tiles. Their features go through one projection, and some of the language model's layers are
gated cross-attention to them. Tokens before the first image attend to all of it, padding too, but their MLP is closed:
so it is in transformers, and so the model was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from vlm_edge.families.base import AttentionSite
from vlm_edge.families.parts.attention import MASKED
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.component import BATCH
from vlm_edge.families.parts.gated_cross import GatedCrossLayer, GatedDecoder, GatedFamily
from vlm_edge.processing.manifest import CanvasTiles, ImageProcessing

ALIGNED = 8
"""The tower fills the patches of a tile up to a multiple of this."""


class CanvasEncoder(nn.Module):
    """pixel_values (images, tiles, 3, side, side), aspect_ratio_ids (images,), aspect_ratio_mask (images, tiles) ->
    image_features (images, tiles, patches, hidden): the last hidden state beside those of a few layers."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor, aspect_ratio_ids: Tensor, aspect_ratio_mask: Tensor) -> tuple[Tensor]:
        tower = self.tower
        images, tiles = pixel_values.shape[:2]
        ids = aspect_ratio_ids[:, None]
        hidden = tower.patch_embedding(pixel_values.flatten(0, 1)).flatten(2).transpose(1, 2)
        width = hidden.shape[2]
        hidden = tower.pre_tile_positional_embedding(hidden.view(images, tiles, -1, width), ids)
        hidden = tower.apply_class_embedding(hidden.flatten(0, 1))
        patches = hidden.shape[1]
        hidden = tower.gated_positional_embedding(hidden.view(images, tiles, patches, width), ids)
        extra = -patches % ALIGNED
        hidden = pad(tower.layernorm_pre(hidden), (0, 0, 0, extra))
        mask = _padding_mask(aspect_ratio_mask, patches if extra else 0, patches + extra)
        hidden = hidden.view(images, -1, width)
        states = []
        for layer in tower.transformer.layers:
            hidden = layer(hidden, mask)
            states.append(hidden)
        hidden = tower.layernorm_post(hidden).view(images, tiles, patches + extra, width)
        hidden = tower.post_tile_positional_embedding(hidden, ids).view(images, -1, width)
        for layer in tower.global_transformer.layers:
            hidden = layer(hidden, mask)
        picked = torch.stack([states[index] for index in tower.intermediate_layers_indices], dim=-1).flatten(2)
        features = torch.cat([hidden, picked], dim=-1).view(images, tiles, patches + extra, -1)
        return (features[:, :, :patches],)


def _padding_mask(tile_mask: Tensor, patches: int, length: int) -> Tensor:
    """(images, 1, tiles x length, tiles x length), to be added: padding does not attend to padding."""
    images, tiles = tile_mask.shape
    inside = (torch.arange(length, device=tile_mask.device) < patches).to(torch.float32)
    outside = 1 - (tile_mask[:, :, None].to(torch.float32) * inside).view(images, tiles * length)
    return (outside[:, None, :, None] * outside[:, None, None, :]) * MASKED


class Mllama(GatedFamily):
    """MllamaForConditionalGeneration. In its cross-attention several queries share a key, and are pruned with it."""

    name = "mllama"
    architectures: tuple[str, ...] = ("MllamaForConditionalGeneration",)
    vision_tower_path = "model.vision_model"
    image_token = "<|image|>"
    image_reach: Literal["group", "last"] | None = "group"
    config_class: Any = MllamaConfig
    model_class: Any = MllamaForConditionalGeneration
    image_processor_class: Any = MllamaImageProcessorPil
    one_row_a_request = True

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        processor = self.image_processor(checkpoint)
        sizes = {side: processor.size[side] for side in ("height", "width")}
        tiles = CanvasTiles(max_tiles=processor.max_image_tiles)
        return self.processing_of(checkpoint, processor, tiles=tiles, **sizes)

    def processed(self, processor: Any, image: Any, spec: ImageProcessing) -> Mapping[str, Any]:
        inputs = processor(images=image, return_tensors="np")
        return {name: inputs[name][0] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}

    def vision_encoder(self, model: Any) -> nn.Module:
        return CanvasEncoder(model.model.vision_model)

    def resampler(self, model: Any) -> nn.Module:
        projector: nn.Module = model.model.multi_modal_projector
        return projector

    def decoder(self, model: Any) -> GatedDecoder:
        language_model = model.model.language_model
        layers: list[tuple[int, nn.Module]] = []
        for number, layer in enumerate(language_model.layers):
            if hasattr(layer, "cross_attn"):
                gates = (layer.cross_attn_attn_gate, layer.cross_attn_mlp_gate)
                layers.append((number, GatedCrossLayer(layer, gates, "{}_norm", gated_rows=True)))
            else:
                layers.append((number, layer))
        return GatedDecoder(
            language_model.embed_tokens, layers, language_model.norm, language_model.rotary_emb, model.lm_head
        )

    def vision_example(self, image: ImageProcessing) -> dict[str, Tensor]:
        assert isinstance(image.tiles, CanvasTiles)
        tiles, generator = image.tiles.max_tiles, torch.Generator().manual_seed(0)
        return {
            "pixel_values": torch.randn((BATCH, tiles, 3, image.height, image.width), generator=generator),
            "aspect_ratio_ids": torch.tensor([1, 2]),
            "aspect_ratio_mask": torch.tensor([[1] * each + [0] * (tiles - each) for each in (1, 2)]),
        }

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """Those of the language model, gated cross-attention among them."""
        return named_sites(model, {self.language_model_path: "decoder"})

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """``generate``, with the processor's mask of what each token sees."""
        from transformers.models.mllama.processing_mllama import (
            convert_sparse_cross_attention_mask_to_dense,
            get_cross_attention_token_mask,
        )

        if "pixel_values" in inputs:
            ids, shown = inputs["input_ids"], inputs["aspect_ratio_mask"]
            seen = get_cross_attention_token_mask(ids[0].tolist(), settings["image_token_id"])
            dense = convert_sparse_cross_attention_mask_to_dense(
                [seen], [shown[0].sum(-1).tolist()], shown.shape[-1], ids.shape[1]
            )
            inputs = {**inputs, "cross_attention_mask": torch.from_numpy(dense)}
        return super().reference(model, inputs, **settings)
