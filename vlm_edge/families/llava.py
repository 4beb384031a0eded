"""LLaVA 1.5: Liu et al. 2023, arXiv:2310.03744, as transformers' LlavaForConditionalGeneration.

A CLIP or SigLIP tower, a projection, and a language model of the Llama line.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.checkpoints.chat_template import MAX_IMAGES, Fallback
from vlm_edge.families.parts.component import Alone
from vlm_edge.families.parts.language_family import LanguageFamily
from vlm_edge.families.parts.tower_states import TowerStates

VICUNA = tuple(f"USER: {'<image>' * images}\n{{question}} ASSISTANT:" for images in range(MAX_IMAGES + 1))
"""The prompt that LLaVA 1.5 was trained on, for folders without a chat template."""


class Llava(LanguageFamily):
    """LlavaForConditionalGeneration. Every image is one picture of the tower's size."""

    name = "llava"
    architectures: tuple[str, ...] = ("LlavaForConditionalGeneration",)
    config_class: Any = LlavaConfig
    model_class: Any = LlavaForConditionalGeneration
    image_processor_class: Any = CLIPImageProcessorPil
    fallback: Fallback | None = Fallback(VICUNA)

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
        return Alone(model.model.multi_modal_projector)
