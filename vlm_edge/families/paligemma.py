"""PaliGemma 1 and 2: Beyer et al. 2024, arXiv:2407.07726, as transformers' PaliGemmaForConditionalGeneration.

A SigLIP tower, one Linear, and Gemma. The prompt is a prefix whose tokens all see each other; only the answer is
causal. The decoder is told by ``prefix_mask`` (batch, past + new) which tokens belong to the prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm_edge.checkpoints.chat_template import FIRST, MAX_IMAGES, QUESTION, Fallback
from vlm_edge.families.parts.attention import additive_mask, visible_tokens
from vlm_edge.families.parts.component import BATCH, PAST, Alone, Inputs
from vlm_edge.families.parts.language_family import LanguageFamily
from vlm_edge.families.parts.llm import NEW, Decoder, causal_visible
from vlm_edge.families.parts.tower_states import TowerStates
from vlm_edge.processing.manifest import TOTAL


class PrefixDecoder(Decoder):
    """As :class:`Decoder`, with ``prefix_mask`` (batch, past + new) int64 before the caches: 1 for the prompt's tokens,
    which see each other whatever their order. Positions count from 1."""

    def forward(
        self,
        input_ids: Tensor,
        image_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        prefix, pasts = rest[0], rest[1:]
        new = input_ids.shape[1]
        together = prefix[:, None, -new:, None].to(torch.float32) * visible_tokens(prefix)
        masks = {}
        for window in self.windows():
            visible = torch.maximum(causal_visible(attention_mask, new, window), together)
            masks[window] = additive_mask(visible * visible_tokens(attention_mask))
        return self.run(self.embeddings(input_ids, image_embeds), masks, position_ids + 1, pasts)


class PaliGemma(LanguageFamily):
    """PaliGemmaForConditionalGeneration."""

    name = "paligemma"
    architectures: tuple[str, ...] = ("PaliGemmaForConditionalGeneration",)
    config_class: Any = PaliGemmaConfig
    model_class: Any = PaliGemmaForConditionalGeneration
    image_processor_class: Any = SiglipImageProcessorPil
    fallback: Fallback | None = Fallback(
        tuple(f"{'<image>' * images}{FIRST}{QUESTION}\n" for images in range(MAX_IMAGES + 1)), special_tokens=False
    )

    def image_tokens(self, config: Any) -> int:
        return int((config.vision_config.image_size // config.vision_config.patch_size) ** 2)

    def vision_encoder(self, model: Any) -> nn.Module:
        return TowerStates(model.model.vision_tower, [-1], 0, normalised=True)

    def connector(self, model: Any) -> nn.Module:
        return Alone(model.model.multi_modal_projector)

    def decoder(self, model: Any) -> Decoder:
        return PrefixDecoder(model.model.language_model, model.get_output_embeddings(), model.config.image_token_id)

    def decoder_inputs(self) -> Inputs:
        prefix = torch.ones((BATCH, PAST + NEW), dtype=torch.int64)
        prefix[0, -1], prefix[1, -2:] = 0, 0
        return {"prefix_mask": (prefix, {0: "batch", 1: TOTAL})}

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """``generate``, told that the whole prompt is prefix, as the processor's token_type_ids say."""
        prefix = torch.zeros_like(inputs["input_ids"])
        return super().reference(model, {**inputs, "token_type_ids": prefix}, **settings)
