"""LLaVA 1.5: Liu et al. 2023, arXiv:2310.03744, as transformers' LlavaForConditionalGeneration.

A CLIP or SigLIP tower, a projection, and a language model of the Llama line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.checkpoints.processors import read_image_processing
from vlm_edge.checkpoints.prompt import MAX_IMAGES
from vlm_edge.families.parts.language_family import LanguageFamily
from vlm_edge.families.parts.tower_states import TowerStates
from vlm_edge.processing.manifest import ImageProcessing

VICUNA = tuple(f"USER: {'<image>' * images}\n{{question}} ASSISTANT:" for images in range(MAX_IMAGES + 1))
"""What LLaVA 1.5 was trained on, for folders without a chat template."""


class Projector(nn.Module):
    """image_features (images, tokens, hidden) -> image_embeds (images, tokens, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector

    def forward(self, image_features: Tensor) -> tuple[Tensor, ...]:
        return (self.projector(image_features),)


class Llava(LanguageFamily):
    """LlavaForConditionalGeneration. Every image is one picture of the tower's size."""

    name = "llava"
    architectures: tuple[str, ...] = ("LlavaForConditionalGeneration",)
    config_class: Any = LlavaConfig
    model_class: Any = LlavaForConditionalGeneration
    image_processor_class: Any = CLIPImageProcessorPil
    fallback_prompt: tuple[str, ...] | None = VICUNA

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        return read_image_processing(checkpoint, self.image_processor_class, self.config(checkpoint).vision_config)

    def image_tokens(self, config: Any) -> int:
        """One for every patch; the class token too, where it is kept."""
        vision = config.vision_config
        kept = config.vision_feature_select_strategy == "full" and vision.model_type == "clip_vision_model"
        return int((vision.image_size // vision.patch_size) ** 2 + kept)

    def vision_encoder(self, model: Any) -> nn.Module:
        config = model.config
        layers = config.vision_feature_layer
        skip = 1 if config.vision_feature_select_strategy == "default" else 0
        return TowerStates(model.model.vision_tower, [layers] if isinstance(layers, int) else layers, skip)

    def connector(self, model: Any) -> nn.Module:
        return Projector(model)
