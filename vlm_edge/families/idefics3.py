"""Idefics3 (Laurençon et al. 2024, arXiv:2408.12637) and SmolVLM (Marafioti et al. 2025, arXiv:2504.05299), as
transformers' Idefics3ForConditionalGeneration and SmolVLMForConditionalGeneration.

A SigLIP-like tower sees square tiles, and the connector puts each square of patches into the channels of one
(pixel shuffle). Tiles are always full, so positions are those of a full tile and nothing is masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from vlm_edge.checkpoints.processors import load_image_processor
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.parts.component import Alone
from vlm_edge.families.parts.language_family import LanguageFamily
from vlm_edge.processing.manifest import ImageProcessing, SplitTiles

AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"
"""Tokens that the processors write around tiles, and before the one that shows the whole image."""


class TileEncoder(nn.Module):
    """pixel_values (tiles, 3, side, side) -> image_features (tiles, patches, hidden)."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.embeddings = tower.embeddings
        self.layers = tower.encoder.layers
        self.post_layernorm = tower.post_layernorm
        self.register_buffer("position_ids", _full_tile_positions(tower.embeddings), persistent=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        patches = self.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = patches + self.embeddings.position_embedding(self.position_ids)
        for layer in self.layers:
            hidden = layer(hidden, None)
        return (self.post_layernorm(hidden),)


def _full_tile_positions(embeddings: Any) -> Tensor:
    """(patches,) int64: the positions that the model's own code gives a tile without padding."""
    side = embeddings.image_size
    patches = embeddings.num_patches_per_side
    seen: list[Tensor] = []
    hook = embeddings.position_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    weight = embeddings.patch_embedding.weight
    try:
        embeddings(
            weight.new_zeros((1, weight.shape[1], side, side)), torch.ones((1, patches, patches), dtype=torch.bool)
        )
    finally:
        hook.remove()
    return seen[0].clone()


class Idefics3(LanguageFamily):
    """Idefics3ForConditionalGeneration."""

    name = "idefics3"
    architectures: tuple[str, ...] = ("Idefics3ForConditionalGeneration",)
    vision_tower_path = "model.vision_model"
    language_model_path = "model.text_model"
    config_class: Any = Idefics3Config
    model_class: Any = Idefics3ForConditionalGeneration
    image_processor_class: Any = Idefics3ImageProcessorPil
    one_row_a_request = True

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        alike = (Idefics3ImageProcessorPil, SmolVLMImageProcessorPil)
        processor = load_image_processor(checkpoint, self.image_processor_class, alike=alike)
        side = self.config(checkpoint).vision_config.image_size
        tile = processor.max_image_size["longest_edge"]
        if tile != side:
            raise VlmEdgeError(
                f"{checkpoint}: max_image_size.longest_edge is {tile}, but the model's tiles are {side} pixels wide",
                "copy preprocessor_config.json and config.json from one source",
            )
        tiles = SplitTiles(
            longest_edge=processor.size["longest_edge"],
            split=processor.do_image_splitting,
            tile_text=f"{AROUND}<row_{{row}}_col_{{column}}>{{image}}",
            row_end="\n",
            whole_text=f"\n{AROUND}{WHOLE}{{image}}{AROUND}",
            single_text=f"{AROUND}{WHOLE}{{image}}{AROUND}",
        )
        return self.processing_of(checkpoint, processor, height=side, width=side, tiles=tiles)

    def processed(self, processor: Any, image: Any, spec: ImageProcessing) -> Mapping[str, Any]:
        return {"pixel_values": np.asarray(processor(images=image, return_tensors="np")["pixel_values"])[0]}

    def image_tokens(self, config: Any) -> int:
        vision = config.vision_config
        return int((vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2)

    def vision_encoder(self, model: Any) -> nn.Module:
        return TileEncoder(model.model.vision_model)

    def connector(self, model: Any) -> nn.Module:
        """Pixel shuffle, then a projection."""
        return Alone(model.model.connector)


class SmolVlm(Idefics3):
    """SmolVLMForConditionalGeneration."""

    name = "smolvlm"
    architectures: tuple[str, ...] = ("SmolVLMForConditionalGeneration",)
    config_class: Any = SmolVLMConfig
    model_class: Any = SmolVLMForConditionalGeneration
    image_processor_class: Any = SmolVLMImageProcessorPil
