"""Any ViT beside any BERT, trained as CLIP is: LiT, Zhai et al. 2021, arXiv:2111.07991, as transformers'
VisionTextDualEncoderModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.clip import Clip, TextEncoder
from vlm_edge.families.parts.attention import padding_mask

VISION_MODELS = ("clip_vision_model", "deit", "vit")
TEXT_MODELS = ("bert", "roberta", "xlm-roberta")
"""Kinds (model_type) of towers that can be exported."""


class BertTextEncoder(TextEncoder):
    """As CLIP's, whose tokens see each other, and BERT pools."""

    def mask(self, attention_mask: Tensor) -> Tensor:
        return padding_mask(attention_mask)

    def pooled(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        pooled: Tensor = self.tower.pooler(hidden)
        return pooled


class VisionTextDualEncoder(Clip):
    """VisionTextDualEncoderModel with a ViT, DeiT or CLIP vision tower and a BERT or RoBERTa."""

    name = "vision-text-dual-encoder"
    architectures: tuple[str, ...] = ("VisionTextDualEncoderModel",)
    config_class: Any = VisionTextDualEncoderConfig
    model_class: Any = VisionTextDualEncoderModel
    image_processor_class: Any = ViTImageProcessorPil
    text_encoder_class: type[nn.Module] = BertTextEncoder

    def build(self, config: Mapping[str, Any]) -> Any:
        settings = VisionTextDualEncoderConfig.from_dict(dict(config))
        for part, known in (("vision_config", VISION_MODELS), ("text_config", TEXT_MODELS)):
            kind = getattr(settings, part).model_type
            if kind not in known:
                raise VlmEdgeError(
                    f"config.json: {part}: {kind!r} can't be exported; known: {', '.join(known)}",
                    "add it to vlm_edge/families/vision_text_dual_encoder.py, as docs/writing-a-family.md says",
                )
        return super().build(config)
