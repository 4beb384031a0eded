"""The language model of a VLM as one graph for prefill and step, with a KV cache.

Layers of the Llama line (Llama, Mistral, Qwen2, Gemma, Gemma2) differ in norms, biases, windows and caps, which the
modules say themselves; :data:`LANGUAGE_MODELS` lists the classes that this holds for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import ComponentExport
from vlm_edge.families.parts.attention import additive_mask, attention, split_heads, visible_past, visible_tokens
from vlm_edge.families.parts.component import BATCH, PAST, Inputs, decoder_export
from vlm_edge.processing.manifest import TOTAL

NEW, IMAGE_TOKENS = 4, 3
"""Sizes of the example inputs, beside those of component.py."""
LANGUAGE_MODELS = (
    "LlamaModel",
    "MistralModel",
    "Qwen2Model",
    "Qwen2VLTextModel",
    "Qwen2_5_VLTextModel",
    "GemmaModel",
    "Gemma2Model",
)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864, equation 34): states (batch, heads, tokens, head_dim), cos
    and sin (batch, 1, tokens, head_dim)."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def window_of(module: Any) -> int | None:
    """The window of one attention module, in tokens; None without a limit."""
    window = module.sliding_window if hasattr(module, "layer_type") else getattr(module.config, "sliding_window", None)
    return None if window is None else int(window)


class SelfAttention(nn.Module):
    """hidden (batch, new, width), its position embeddings, mask and past -> (output, key, value) with the past."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        self.window = window_of(module)
        self.softcap = getattr(module, "attn_logit_softcapping", None)

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        module = self.module
        query, key, value = (
            split_heads(project(hidden), module.head_dim) for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        context = attention(query, key, value, mask, module.scaling, self.softcap)
        return module.o_proj(context), key, value


class DecoderLayer(nn.Module):
    """One layer of the Llama line; Gemma 2 has a norm behind each half as well."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.self_attention = SelfAttention(layer.self_attn)
        self.sandwiched = hasattr(layer, "pre_feedforward_layernorm")

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        layer = self.layer
        attended, key, value = self.self_attention(layer.input_layernorm(hidden), rotary, mask, past)
        if self.sandwiched:
            hidden = hidden + layer.post_attention_layernorm(attended)
            moved = layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(hidden)))
        else:
            hidden = hidden + attended
            moved = layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden + moved, key, value


def merged_embeddings(text: Tensor, input_ids: Tensor, image_embeds: Tensor, image_token_id: int) -> Tensor:
    """The text's embeddings (batch, new, width) with ``image_embeds`` (image_tokens, width) in the image tokens'
    places, in order over the batch. An image token that was generated, when no image is left, stays text."""
    is_image = input_ids == image_token_id
    rows = torch.cumsum(is_image.flatten().to(torch.int64), dim=0).view(input_ids.shape) - 1
    left = image_embeds.shape[0]
    padded = torch.cat([image_embeds, image_embeds.new_zeros(1, image_embeds.shape[1])])
    taken = padded[rows.clamp(0, left)]
    return torch.where((is_image & (rows < left))[..., None], taken, text)


def causal_visible(attention_mask: Tensor, new: int, window: int | None = None) -> Tensor:
    """attention_mask (batch, past + new) of 1 and 0 -> (1, 1, new, past + new) of 1 and 0: the tokens that
    each new one may see, itself and those before it within ``window``. Padding is not considered."""
    total = attention_mask.shape[1]
    visible = visible_past(new, total - new, attention_mask.device)
    if window is not None:
        query = torch.arange(total - new, total, device=attention_mask.device)[:, None]
        key = torch.arange(total, device=attention_mask.device)[None, :]
        visible = visible * (query - key < window).to(torch.float32)
    return visible[None, None]


def causal_mask(attention_mask: Tensor, new: int, window: int | None = None) -> Tensor:
    """attention_mask (batch, past + new) of 1 and 0 -> the additive mask (batch, 1, new, total)."""
    return additive_mask(causal_visible(attention_mask, new, window) * visible_tokens(attention_mask))


class Decoder(nn.Module):
    """input_ids (batch, new), image_embeds (image_tokens, width), attention_mask (batch, past + new), position_ids
    (batch, new), past_key_values.{layer}.key|value -> logits (batch, 1, vocabulary) of the last token, and
    present.{layer}.key|value. Rows of unequal length are padded on the left.

    With ``position_planes`` (time, height, width: Wang et al. 2024, arXiv:2409.12191, section 2.1), position_ids are
    (3, batch, new), and the model's own rotary embedding mixes them."""

    position_planes = 0
    last_tokens = 1
    """Tokens that logits are computed of; training asks for more than the last."""

    def __init__(self, language_model: Any, head: nn.Module, image_token_id: int) -> None:
        super().__init__()
        name = type(language_model).__name__
        if name not in LANGUAGE_MODELS:
            raise VlmEdgeError(
                f"text_config: the language model is a {name}; known: {', '.join(LANGUAGE_MODELS)}",
                "add how its layers compute to vlm_edge/families/parts/llm.py, as docs/writing-a-family.md says",
            )
        self.embed_tokens = language_model.embed_tokens
        self.layers = nn.ModuleList([DecoderLayer(layer) for layer in language_model.layers])
        self.norm = language_model.norm
        self.rotary = language_model.rotary_emb
        self.head = head
        self.image_token_id = image_token_id
        self.softcap = getattr(language_model.config, "final_logit_softcapping", None)

    def forward(
        self, input_ids: Tensor, image_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *pasts: Tensor
    ) -> tuple[Tensor, ...]:
        masks = {window: causal_mask(attention_mask, input_ids.shape[1], window) for window in self.windows()}
        return self.run(self.embeddings(input_ids, image_embeds), masks, position_ids, pasts)

    def embeddings(self, input_ids: Tensor, image_embeds: Tensor) -> Tensor:
        """(batch, new, width). An image token that the table has no row for is looked up as token 0."""
        known = input_ids
        if self.image_token_id >= self.embed_tokens.num_embeddings:
            known = torch.where(input_ids == self.image_token_id, 0, input_ids)
        return merged_embeddings(self.embed_tokens(known), input_ids, image_embeds, self.image_token_id)

    def run(
        self, hidden: Tensor, masks: Mapping[int | None, Tensor], position_ids: Tensor, pasts: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """All layers on ``hidden`` (batch, new, width), with the mask of each layer's window: what forward returns."""
        hidden, rotary = self.positions(hidden, position_ids)
        presents: list[Tensor] = []
        layers: Any = self.layers
        for index, layer in enumerate(layers):
            past = pasts[2 * index : 2 * index + 2]
            hidden, key, value = layer(hidden, rotary, masks[layer.self_attention.window], past)
            presents += [key, value]
        return (self.logits(self.norm(hidden[:, -self.last_tokens :])), *presents)

    def positions(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """hidden, and what every layer rotates by: cos and sin (batch, 1, new, head_dim)."""
        cos, sin = self.rotary(hidden, position_ids)
        return hidden, (cos.unsqueeze(1), sin.unsqueeze(1))

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def windows(self) -> set[int | None]:
        """The different windows of the layers."""
        layers: Any = self.layers
        return {layer.self_attention.window for layer in layers}

    def cache_shapes(self) -> dict[int, tuple[int, int]]:
        """{layer: (groups, head_dim)} of the layers' keys and values."""
        layers: Any = self.layers
        return {index: key_shape(layer.self_attention.module) for index, layer in enumerate(layers)}


def key_shape(module: Any) -> tuple[int, int]:
    """(groups, head_dim) of an attention module's keys and values."""
    return module.k_proj.out_features // module.head_dim, module.head_dim


def language_decoder_export(module: Decoder, vocabulary: int, width: int, more: Inputs) -> ComponentExport:
    """The ``decoder`` component of a language model that takes images' embeddings of ``width``.

    The example has one image token more than ``image_embeds`` has rows, which stays text, and padding on the left.
    ``more``: inputs that stand between position_ids and the caches.
    """
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(0, vocabulary, (BATCH, NEW), generator=generator)
    input_ids[0, :2] = input_ids[1, -2:] = module.image_token_id
    attention_mask = torch.ones((BATCH, PAST + NEW), dtype=torch.int64)
    attention_mask[-1, :2] = 0
    positions, position_axes = PAST + torch.arange(NEW).repeat(BATCH, 1), {0: "batch", 1: "new"}
    if planes := module.position_planes:
        positions = positions.repeat(planes, 1, 1) + torch.arange(planes)[:, None, None]
        position_axes = {1: "batch", 2: "new"}
    image_embeds = torch.randn((IMAGE_TOKENS, width), generator=generator)
    inputs: Inputs = {
        "input_ids": (input_ids, {0: "batch", 1: "new"}),
        "image_embeds": (image_embeds, {0: "image_tokens"}),
        "attention_mask": (attention_mask, {0: "batch", 1: TOTAL}),
        "position_ids": (positions, position_axes),
    }
    return decoder_export(module, {**inputs, **more}, {0: "batch"}, ["image_tokens"])
