"""MobileViT, arXiv:2110.02178, and MobileViTv2, arXiv:2206.02680, as towers of their own.

v2's attention is separable (one context vector, no heads), so only v1 has attention sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTModel,
    MobileViTV2Config,
    MobileViTV2ForImageClassification,
    MobileViTV2Model,
)
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

from vlm_edge.families.parts.vision_family import VisionTower
from vlm_edge.students.mobilevit_patches import use_plain_patches


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

    def build(self, config: Mapping[str, Any]) -> Any:
        model = super().build(config)
        use_plain_patches(model)
        return model


class MobileVitV2(MobileVit):
    """As MobileViT, with separable attention."""

    name = "mobilevitv2"
    architectures: tuple[str, ...] = ("MobileViTV2Model", "MobileViTV2ForImageClassification")
    config_class: Any = MobileViTV2Config
    model_classes: Mapping[str, Any] = {
        "MobileViTV2Model": MobileViTV2Model,
        "MobileViTV2ForImageClassification": MobileViTV2ForImageClassification,
    }
