"""PaliGemma 1 and 2: Beyer et al. 2024, arXiv:2407.07726, as transformers' PaliGemmaForConditionalGeneration.

A SigLIP tower, one Linear, and Gemma. The prompt is a prefix whose tokens all see each other; only the answer is
causal. The decoder is told by ``prefix_mask`` (batch, past + new) which tokens belong to the prefix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm_edge.checkpoints.processors import read_image_processing
from vlm_edge.checkpoints.prompt import FIRST, MAX_IMAGES, QUESTION
from vlm_edge.families.base import ComponentExport
from vlm_edge.families.llava import Projector
from vlm_edge.families.parts.attention_masks import additive_mask, visible_tokens
from vlm_edge.families.parts.language_family import LanguageFamily
from vlm_edge.families.parts.llm import BATCH, NEW, PAST, Decoder, causal_visible, decoder_export
from vlm_edge.families.parts.tower_states import TowerStates
from vlm_edge.processing.manifest import TOTAL, ImageProcessing


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
    fallback_prompt = tuple(f"{'<image>' * images}{FIRST}{QUESTION}\n" for images in range(MAX_IMAGES + 1))
    fallback_special_tokens = False

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        return read_image_processing(checkpoint, self.image_processor_class, self.config(checkpoint).vision_config)

    def image_tokens(self, config: Any) -> int:
        return int((config.vision_config.image_size // config.vision_config.patch_size) ** 2)

    def vision_encoder(self, model: Any) -> nn.Module:
        return TowerStates(model.model.vision_tower, [-1], 0, normalised=True)

    def connector(self, model: Any) -> nn.Module:
        return Projector(model)

    def decoder(self, model: Any) -> nn.Module:
        language_model = model.get_submodule(self.language_model_path)
        return PrefixDecoder(language_model, model.get_output_embeddings(), self.image_token_id(model.config))

    def decoder_export(self, model: Any, width: int) -> ComponentExport:
        prefix = torch.ones((BATCH, PAST + NEW), dtype=torch.int64)
        prefix[0, -1], prefix[1, -2:] = 0, 0
        more = {"prefix_mask": (prefix, {0: "batch", 1: TOTAL})}
        return decoder_export(self.decoder(model), model.get_output_embeddings().out_features, width, more)

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """``generate``, told that the whole prompt is prefix, as the processor's token_type_ids say."""
        prefix = torch.zeros_like(input_ids)
        return super().reference(model, pixel_values, input_ids, attention_mask, token_type_ids=prefix, **settings)
