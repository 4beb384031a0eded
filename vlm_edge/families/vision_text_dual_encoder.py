"""Any ViT beside any BERT, trained as CLIP is: LiT, Zhai et al. 2021, arXiv:2111.07991, as transformers'
VisionTextDualEncoderModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.clip import Clip
from vlm_edge.families.parts.attention_masks import additive_mask, visible_tokens

VISION_MODELS = ("clip_vision_model", "deit", "vit")
TEXT_MODELS = ("bert", "roberta", "xlm-roberta")
"""Kinds (model_type) of towers that can be exported."""


class TextEncoder(nn.Module):
    """input_ids, attention_mask (texts, tokens) -> text_embeds (texts, dim), L2-normalised: BERT's pooled output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.text_model
        self.projection = model.text_projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        hidden = self.tower.embeddings(input_ids=input_ids)
        mask = additive_mask(visible_tokens(attention_mask))
        hidden = self.tower.encoder(hidden, attention_mask=mask).last_hidden_state
        return (normalize(self.projection(self.tower.pooler(hidden)), dim=-1),)


class VisionTextDualEncoder(Clip):
    """VisionTextDualEncoderModel with a ViT, DeiT or CLIP vision tower and a BERT or RoBERTa."""

    name = "vision-text-dual-encoder"
    architectures: tuple[str, ...] = ("VisionTextDualEncoderModel",)
    config_class: Any = VisionTextDualEncoderConfig
    model_class: Any = VisionTextDualEncoderModel
    image_processor_class: Any = ViTImageProcessorPil
    text_encoder_class: type[nn.Module] = TextEncoder

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        settings = VisionTextDualEncoderConfig.from_dict(dict(config))
        for part, known in (("vision_config", VISION_MODELS), ("text_config", TEXT_MODELS)):
            kind = getattr(settings, part).model_type
            if kind not in known:
                raise VlmEdgeError(
                    f"config.json: {part}: {kind!r} can't be exported; known: {', '.join(known)}",
                    "add it to vlm_edge/families/vision_text_dual_encoder.py, as docs/writing-a-family.md says",
                )
        return super().build(config)
