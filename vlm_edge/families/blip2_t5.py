"""BLIP-2 with a T5 (Salesforce/blip2-flan-t5-xl): Li et al. 2023, arXiv:2301.12597, figure 3, below.

The Q-Former's outputs stand before the question in T5's encoder, and its decoder writes the answer: three graphs as
Florence-2's, not a language model's prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.checkpoints.config import read_config
from vlm_edge.checkpoints.generation_settings import read_generation
from vlm_edge.checkpoints.processors import read_image_processing, read_text_processing
from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.blip2 import ImageStates, QFormer, qformer_sites
from vlm_edge.families.florence2 import MASK, MEMORY_TOKENS
from vlm_edge.families.parts.cached_decoder import (
    BATCH,
    MEMORY,
    CachedLayer,
    cross_key_values,
    cross_shapes,
    decoder_export,
)
from vlm_edge.families.parts.language_family import fused_attention
from vlm_edge.families.parts.t5 import T5Decoder, T5Encoder
from vlm_edge.processing.manifest import Generation, ImageProcessing, PipelineKind, TextProcessing

PROMPT = "Question: {input} Answer:"
"""What BLIP-2 was asked with (section 4.1)."""
LONGEST = 512
"""Tokens of a question or an answer: T5 has no last position, and was trained on as many."""


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> image_features (images, queries, width): the Q-Former's outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = ImageStates(model.vision_model)
        self.connector = QFormer(model)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        (features,) = self.connector(*self.tower(pixel_values))
        return (features,)


class TextEncoder(nn.Module):
    """input_ids, attention_mask (batch, question_tokens), image_features (batch, queries, width) ->
    encoder_attention_mask (batch, queries + question_tokens), and the decoder's cross-attention keys and values."""

    def __init__(self, language_model: Any, layers: list[CachedLayer]) -> None:
        super().__init__()
        self.embeddings = language_model.shared
        self.encoder = T5Encoder(language_model.encoder)
        self.layers = nn.ModuleList(layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor) -> tuple[Tensor, ...]:
        seen = torch.cat([attention_mask.new_ones(image_features.shape[:2]), attention_mask], dim=1)
        memory = self.encoder(torch.cat([image_features, self.embeddings(input_ids)], dim=1), seen)
        return (seen, *cross_key_values(self.layers, memory))  # type: ignore[arg-type]


class Blip2T5(Family):
    """Blip2ForConditionalGeneration whose language model is a T5; ``Blip2`` hands its checkpoints over."""

    name = "blip-2-t5"
    architectures: tuple[str, ...] = ()
    pipeline: PipelineKind = "vqa"
    vision_tower_path = "vision_model"
    inner_generate = True

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        settings = Blip2Config.from_dict(dict(config), attn_implementation="eager")
        model: nn.Module = Blip2ForConditionalGeneration(settings)
        return model

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        tower = Blip2Config.from_dict(read_config(checkpoint)).vision_config
        return read_image_processing(checkpoint, BlipImageProcessorPil, tower)

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        """Every text is a question (the short form that is in any text is the empty one)."""
        return read_text_processing(checkpoint, LONGEST).model_copy(update={"tasks": {"": PROMPT}})

    def generation(self, checkpoint: Path) -> Generation:
        config = Blip2Config.from_dict(read_config(checkpoint))
        return read_generation(checkpoint, config.text_config, LONGEST, inner=True)

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        whole: Any = model
        decoder = T5Decoder(whole.language_model).eval()
        layers: list[CachedLayer] = list(decoder.layers)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randn((BATCH, 3, image.height, image.width), generator=generator)
        vocabulary = whole.config.text_config.vocab_size
        input_ids = torch.randint(0, vocabulary, (BATCH, MEMORY), generator=generator)
        attention_mask = torch.ones_like(input_ids)
        attention_mask[-1, -2:] = 0
        vision = VisionEncoder(whole).eval()
        with torch.no_grad():
            (features,) = vision(pixels)
        tokens = {0: "batch", 1: "question_tokens"}
        memory = f"{features.shape[1]} + question_tokens"
        return {
            "vision_encoder": ComponentExport(
                module=vision,
                example={"pixel_values": pixels},
                dynamic={"pixel_values": {0: "images"}},
                output_shapes={"image_features": ("images", *features.shape[1:])},
            ),
            "text_encoder": ComponentExport(
                module=TextEncoder(whole.language_model, layers).eval(),
                example={"input_ids": input_ids, "attention_mask": attention_mask, "image_features": features},
                dynamic={"input_ids": tokens, "attention_mask": tokens, "image_features": {0: "batch"}},
                output_shapes={MASK: ("batch", memory)} | cross_shapes(layers, "batch", memory),
            ),
            "decoder": decoder_export(decoder, vocabulary, MEMORY_TOKENS, MASK),
        }

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """``generate`` with the image's placeholders before the question, as Blip2Processor puts them."""
        whole: Any = model
        places = input_ids.new_full((len(input_ids), whole.config.num_query_tokens), whole.config.image_token_index)
        with fused_attention(whole.vision_model):
            return whole.generate(
                pixel_values,
                input_ids=torch.cat([places, input_ids], dim=1),
                attention_mask=torch.cat([torch.ones_like(places), attention_mask], dim=1),
                **settings,
            )

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """The Q-Former's attention. T5's layers share a bias by heads, so none of them can lose heads of its own."""
        return qformer_sites(model)
