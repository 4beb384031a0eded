"""BLIP-2 with a T5 (Salesforce/blip2-flan-t5-xl): Li et al. 2023, arXiv:2301.12597, figure 3, below.

The Q-Former's outputs stand before the question in T5's encoder, and its decoder writes the answer: three graphs as
Florence-2's, not a language model's prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.checkpoints.generation_settings import read_generation
from vlm_edge.checkpoints.processors import read_text_processing
from vlm_edge.families.base import AttentionSite
from vlm_edge.families.blip2 import ImageStates, QFormer
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.cached_decoder import MaskedDecoder
from vlm_edge.families.parts.component import SplitEncoder
from vlm_edge.families.parts.image_prefix import ImagePrefixFamily, TextEncoder, with_places
from vlm_edge.families.parts.language_family import fused_attention
from vlm_edge.families.parts.t5 import T5Decoder, T5Encoder
from vlm_edge.processing.manifest import Generation, TextProcessing

PROMPT = "Question: {input} Answer:"
"""The question as BLIP-2 was asked it (section 4.1)."""
LONGEST = 512
"""Tokens of a question or an answer: T5 has no last position, and was trained on as many."""


class VisionEncoder(SplitEncoder):
    """pixel_values (images, 3, height, width) -> image_features (images, queries, width): the Q-Former's outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = ImageStates(model.vision_model)
        self.connector = QFormer(model)

    def states(self, pixel_values: Tensor) -> Tensor:
        (states,) = self.tower(pixel_values)
        result: Tensor = states
        return result

    def outputs(self, states: Tensor) -> tuple[Tensor, ...]:
        (features,) = self.connector(states)
        return (features,)


class Blip2T5(ImagePrefixFamily):
    """Blip2ForConditionalGeneration whose language model is a T5."""

    name = "blip-2-t5"
    architectures: tuple[str, ...] = ("Blip2ForConditionalGeneration",)
    config_class: Any = Blip2Config
    model_class: Any = Blip2ForConditionalGeneration
    image_processor_class: Any = BlipImageProcessorPil
    vision_tower_path = "vision_model"
    inner_generate = True

    def build(self, config: Mapping[str, Any]) -> Any:
        """As transformers does; what its layers of cross-attention hand on, zeros for each head, fits any number."""
        model = super().build(config)
        for block in model.language_model.decoder.block:
            block.layer[1].EncDecAttention.register_forward_pre_hook(_for_any_heads, with_kwargs=True)
        return model

    def takes(self, config: Mapping[str, Any]) -> bool:
        text = config.get("text_config")
        return isinstance(text, Mapping) and text.get("model_type") == "t5"

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        """Every text is a question (the short form that is in any text is the empty one)."""
        return read_text_processing(checkpoint, LONGEST).model_copy(update={"tasks": {"": PROMPT}})

    def generation(self, checkpoint: Path) -> Generation:
        return read_generation(checkpoint, self.config(checkpoint).text_config, None, inner=True)

    def vision_encoder(self, model: Any) -> nn.Module:
        return VisionEncoder(model)

    def text_encoder(self, model: Any, layers: Iterable[nn.Module]) -> TextEncoder:
        return TextEncoder(model.language_model.shared, T5Encoder(model.language_model.encoder), layers)

    def decoder(self, model: Any) -> MaskedDecoder:
        return T5Decoder(model.language_model)

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        asked = with_places(inputs, model.config.num_query_tokens, model.config.image_token_index)
        with fused_attention(model.vision_model):
            return model.generate(**asked, **settings)

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """The Q-Former's attention and T5's cross-attention. T5's self-attention shares a bias by heads among its
        layers, so none of them can lose heads of its own."""
        return named_sites(model, {"qformer": "vision_encoder", "language_model.decoder": "decoder"})


def _for_any_heads(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Cross-attention's bias (1, heads, queries, keys), the same for every head, for layers with other numbers."""
    bias = named.get("position_bias")
    return arguments, named if bias is None else {**named, "position_bias": bias[:, :1]}
