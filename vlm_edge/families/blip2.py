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

from vlm_edge.checkpoints.pretrained import load_tokenizer
from vlm_edge.checkpoints.processors import read_image_processing
from vlm_edge.checkpoints.prompt import FIRST, MAX_IMAGES, QUESTION
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionRole, AttentionSite, Family
from vlm_edge.families.parts.language_family import LanguageFamily, fused_attention
from vlm_edge.families.parts.llm import Decoder, self_attention_sites
from vlm_edge.families.parts.opt import OptDecoder
from vlm_edge.processing.manifest import ImageProcessing, Prompt

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
    fallback_prompt: tuple[str, ...] | None = tuple(
        f"{'<image>' * images}{FIRST}Question: {QUESTION} Answer:" for images in range(MAX_IMAGES + 1)
    )
    fallback_special_tokens = False

    def for_config(self, config: Mapping[str, Any]) -> Family:
        """A T5 reads the question in an encoder, and so has another family."""
        from vlm_edge.families.blip2_t5 import Blip2T5

        text = config.get("text_config")
        t5 = self.name == Blip2.name and isinstance(text, Mapping) and text.get("model_type") == "t5"
        return Blip2T5() if t5 else self

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

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        return read_image_processing(checkpoint, self.image_processor_class, self.config(checkpoint).vision_config)

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
        language_model, token = model.language_model, self.image_token_id(model.config)
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

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """Self- and cross-attention of the Q-Former, self-attention of the language model; the tower's is fused."""
        opt = hasattr(model.get_submodule(self.language_model_path), "decoder")
        out = "out_proj" if opt else "o_proj"
        return [*qformer_sites(model), *self_attention_sites(model, self.language_model_path, "decoder", out)]

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """``generate``; without an image that of the language model alone, since the whole one demands an image."""
        settings.pop("image_token_id", None)
        vlm: Any = model
        if len(pixel_values):
            with fused_attention(vlm.vision_model):
                return vlm.generate(pixel_values, input_ids=input_ids, attention_mask=attention_mask, **settings)
        return vlm.language_model.generate(input_ids=input_ids, attention_mask=attention_mask, **settings)


def qformer_sites(model: nn.Module) -> list[AttentionSite]:
    """Every attention of the Q-Former."""
    modules: list[tuple[str, Any]] = [(path, module) for path, module in model.named_modules()]
    return [
        AttentionSite(
            path=path,
            role=AttentionRole.CROSS if ".crossattention." in path else AttentionRole.SELF,
            component="connector",
            num_heads=module.num_attention_heads,
            head_dim=module.attention_head_size,
            q=f"{path}.query",
            k=f"{path}.key",
            v=f"{path}.value",
            out=f"{path.rpartition('.')[0]}.output.dense",
            num_heads_attr="num_attention_heads",
            all_head_size_attr="all_head_size",
        )
        for path, module in modules
        if path.startswith("qformer.") and path.endswith("attention.attention")
    ]
