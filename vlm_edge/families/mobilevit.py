"""MobileViT, arXiv:2110.02178, and MobileViTv2, arXiv:2206.02680, as towers of their own.

v2's attention is separable (one context vector, no heads), so only v1 has attention sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import (
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTModel,
    MobileViTV2Config,
    MobileViTV2ForImageClassification,
    MobileViTV2Model,
)
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.mobilevit.modeling_mobilevit import MobileViTAttention

from vlm_edge.families.base import AttentionRole, AttentionSite
from vlm_edge.families.vision_tower import VisionTower


class MobileVit(VisionTower):
    """The embedding is the mean of the last feature map, and the features are its cells, row by row."""

    name = "mobilevit"
    architectures: tuple[str, ...] = ("MobileViTModel", "MobileViTForImageClassification")
    config_class: Any = MobileViTConfig
    model_classes: Mapping[str, Any] = {
        "MobileViTModel": MobileViTModel,
        "MobileViTForImageClassification": MobileViTForImageClassification,
    }
    image_processor_class: Any = MobileViTImageProcessorPil

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        return [
            AttentionSite(
                path=f"{path}.attention",
                role=AttentionRole.SELF,
                component="vision_encoder",
                num_heads=module.attention.num_attention_heads,
                head_dim=module.attention.attention_head_size,
                q=f"{path}.attention.query",
                k=f"{path}.attention.key",
                v=f"{path}.attention.value",
                out=f"{path}.output.dense",
                num_heads_attr="num_attention_heads",
                all_head_size_attr="all_head_size",
            )
            for path, module in model.named_modules()
            if isinstance(module, MobileViTAttention)
        ]


class MobileVitV2(VisionTower):
    """As MobileViT, with separable attention."""

    name = "mobilevitv2"
    architectures: tuple[str, ...] = ("MobileViTV2Model", "MobileViTV2ForImageClassification")
    config_class: Any = MobileViTV2Config
    model_classes: Mapping[str, Any] = {
        "MobileViTV2Model": MobileViTV2Model,
        "MobileViTV2ForImageClassification": MobileViTV2ForImageClassification,
    }
    image_processor_class: Any = MobileViTImageProcessorPil
