"""DINOv2: Oquab et al. 2023, arXiv:2304.07193, as transformers' Dinov2Model and Dinov2ForImageClassification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from vlm_edge.families.parts.vision_family import VisionTower
from vlm_edge.processing.manifest import ImageProcessing


class FixedSize(nn.Module):
    """Dinov2Model for images of one size: its positions, trained at 518 x 518, are interpolated once and stored."""

    positions: Tensor

    def __init__(self, base: Any, image: ImageProcessing) -> None:
        super().__init__()
        self.base = base
        embeddings = base.embeddings
        rows, columns = (
            side // patch
            for side, patch in zip((image.height, image.width), embeddings.patch_embeddings.patch_size, strict=True)
        )
        with torch.no_grad():
            hidden = torch.zeros(1, 1 + rows * columns, base.config.hidden_size)
            positions = embeddings.interpolate_pos_encoding(hidden, image.height, image.width).detach().clone()
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        patches = self.base.embeddings.patch_embeddings(pixel_values)
        first = self.base.embeddings.cls_token.expand(patches.shape[0], -1, -1)
        hidden = self.base.encoder(torch.cat([first, patches], dim=1) + self.positions).last_hidden_state
        hidden = self.base.layernorm(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden[:, 0])


class Dinov2(VisionTower):
    """The embedding is the first token's state, and the features are every token's, that one included."""

    name = "dinov2"
    architectures: tuple[str, ...] = ("Dinov2Model", "Dinov2ForImageClassification")
    config_class: Any = Dinov2Config
    model_classes: Mapping[str, Any] = {
        "Dinov2Model": Dinov2Model,
        "Dinov2ForImageClassification": Dinov2ForImageClassification,
    }
    image_processor_class: Any = BitImageProcessorPil

    def base(self, model: Any, image: ImageProcessing) -> nn.Module:
        return FixedSize(super().base(model, image), image)

    def head_input(self, features: Tensor, embeds: Tensor) -> Tensor:
        """The first token beside the mean of the others, as Dinov2ForImageClassification reads them."""
        return torch.cat([embeds, features[:, 1:].mean(dim=1)], dim=1)
