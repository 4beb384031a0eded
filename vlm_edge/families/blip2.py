"""BLIP-2: Li et al. 2023, arXiv:2301.12597, as transformers' Blip2ForConditionalGeneration.

A Q-Former reads the image through cross-attention with a few learned queries, whose outputs, projected, stand before
the text of an OPT or Llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.checkpoints.chat_template import FIRST, MAX_IMAGES, QUESTION, Fallback
from vlm_edge.checkpoints.pretrained import load_tokenizer
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionSite
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.language_family import LanguageFamily
from vlm_edge.families.parts.llm import Decoder
from vlm_edge.families.parts.opt import OptDecoder
from vlm_edge.processing.manifest import Prompt

_PROBES = ("what is it?", " Two words")


class ImageStates(nn.Module):
    """pixel_values (images, 3, height, width) -> image_features (images, tokens, hidden)."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        hidden = self.tower.embeddings(pixel_values)
        for layer in self.tower.encoder.layers:
            hidden = layer(hidden)
        return (self.tower.post_layernorm(hidden),)


class QFormer(nn.Module):
    """image_features (images, tokens, hidden) -> image_embeds (images, queries, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.query_tokens = model.query_tokens
        self.qformer = model.qformer
        self.projection = model.language_projection

    def forward(self, image_features: Tensor) -> tuple[Tensor]:
        hidden = self.qformer.layernorm(self.query_tokens).repeat(image_features.shape[0], 1, 1)
        for layer in self.qformer.encoder.layer:
            hidden = layer(hidden, None, image_features, query_length=hidden.shape[1])
        return (self.projection(hidden),)


class Blip2(LanguageFamily):
    """Blip2ForConditionalGeneration with an OPT or a Llama."""

    name = "blip-2"
    architectures: tuple[str, ...] = ("Blip2ForConditionalGeneration",)
    vision_tower_path = "vision_model"
    inner_generate = True
    language_model_path = "language_model.model"
    config_class: Any = Blip2Config
    model_class: Any = Blip2ForConditionalGeneration
    image_processor_class: Any = BlipImageProcessorPil
    fallback: Fallback | None = Fallback(
        tuple(f"{'<image>' * images}{FIRST}Question: {QUESTION} Answer:" for images in range(MAX_IMAGES + 1)),
        special_tokens=False,
    )

    def prompt(self, checkpoint: Path) -> Prompt | None:
        """As the processor puts it: the image's tokens before what the tokenizer makes of the text.

        Raises:
            VlmEdgeError: the tokenizer reads text behind other tokens otherwise than alone.
        """
        prompt = super().prompt(checkpoint)
        assert prompt is not None
        tokenizer = load_tokenizer(checkpoint)
        for question in _PROBES:
            behind = tokenizer.encode(prompt.layouts[1].replace(QUESTION, question), add_special_tokens=False)
            text = prompt.layouts[0].removeprefix(tokenizer.bos_token or "").replace(QUESTION, question)
            if behind != [prompt.image_token_id, *tokenizer.encode(text)]:
                raise VlmEdgeError(
                    f"{checkpoint}: the tokenizer reads {text!r} behind an image otherwise than alone",
                    "compare tokenizer.json with the one on the model's page",
                )
        return prompt

    def image_tokens(self, config: Any) -> int:
        return int(config.num_query_tokens)

    def vision_encoder(self, model: Any) -> nn.Module:
        return ImageStates(model.vision_model)

    def connector(self, model: Any) -> nn.Module:
        return QFormer(model)

    def decoder(self, model: Any) -> nn.Module:
        """
        Raises:
            VlmEdgeError: the language model reads its prompt in an encoder (T5).
        """
        language_model, token = model.language_model, model.config.image_token_id
        if language_model.config.is_encoder_decoder:
            raise VlmEdgeError(
                f"text_config: the language model is a {type(language_model).__name__}; known beside those of the "
                "Llama line: OPTForCausalLM",
                "use a checkpoint with OPT or Vicuna",
            )
        inner = language_model.model
        if hasattr(inner, "decoder"):
            return OptDecoder(inner.decoder, language_model.lm_head, token)
        return Decoder(inner, language_model.lm_head, token)

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """Self- and cross-attention of the Q-Former, self-attention of the language model; the tower's is fused."""
        return named_sites(model, {"qformer": "connector", self.language_model_path: "decoder"})

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """``generate``; without an image that of the language model alone, since the whole one demands an image."""
        if "pixel_values" in inputs:
            return super().reference(model, inputs, **settings)
        settings.pop("image_token_id", None)
        return model.language_model.generate(**inputs, **settings)
