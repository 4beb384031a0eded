"""Layers of text decoders that transformers has, as :class:`CachedLayer`: BART's line, GPT-2, BERT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.parts.attention import attention, padding_mask, split_heads
from vlm_edge.families.parts.cached_decoder import CachedDecoder, CachedLayer, KeyValue, extended


class BartLayer(CachedLayer):
    """Layers of BART and TrOCR (norm behind each part), and of mBART (norm before): Lewis et al. 2019,
    arXiv:1910.13461; Liu et al. 2020, arXiv:2001.08210."""

    def __init__(self, layer: Any, norm_first: bool) -> None:
        super().__init__(layer)
        self.norm_first = norm_first

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        own, cross = self.layer.self_attn, self.layer.encoder_attn
        return (own.num_heads, own.head_dim), (cross.num_heads, cross.head_dim)

    def cross_key_value(self, memory: Tensor) -> KeyValue:
        return _projected(self.layer.encoder_attn, memory)

    def forward(
        self, hidden: Tensor, past: KeyValue, cross: KeyValue, self_mask: Tensor, cross_mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        layer = self.layer
        states = layer.self_attn_layer_norm(hidden) if self.norm_first else hidden
        present = extended(past, *_projected(layer.self_attn, states))
        hidden = hidden + _attended(layer.self_attn, states, present, self_mask)
        hidden = hidden if self.norm_first else layer.self_attn_layer_norm(hidden)
        states = layer.encoder_attn_layer_norm(hidden) if self.norm_first else hidden
        hidden = hidden + _attended(layer.encoder_attn, states, cross, cross_mask)
        hidden = hidden if self.norm_first else layer.encoder_attn_layer_norm(hidden)
        states = layer.final_layer_norm(hidden) if self.norm_first else hidden
        hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(states)))
        return (hidden if self.norm_first else layer.final_layer_norm(hidden)), present


def _projected(module: Any, states: Tensor) -> KeyValue:
    return split_heads(module.k_proj(states), module.head_dim), split_heads(module.v_proj(states), module.head_dim)


def _attended(module: Any, states: Tensor, key_value: KeyValue, mask: Tensor | None) -> Tensor:
    query = split_heads(module.q_proj(states), module.head_dim)
    context: Tensor = module.out_proj(attention(query, *key_value, mask, module.scaling))
    return context


class BartEncoder(nn.Module):
    """embeds (batch, tokens, width), attention_mask (batch, tokens) -> a BartEncoder's last hidden states."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, embeds: Tensor, attention_mask: Tensor) -> Tensor:
        mask = padding_mask(attention_mask)
        hidden: Tensor = self.encoder.layernorm_embedding(embeds + self.encoder.embed_positions(embeds[:, :, 0]))
        for layer in self.encoder.layers:
            key_value = _projected(layer.self_attn, hidden)
            hidden = layer.self_attn_layer_norm(hidden + _attended(layer.self_attn, hidden, key_value, mask))
            hidden = layer.final_layer_norm(hidden + layer.fc2(layer.activation_fn(layer.fc1(hidden))))
        return hidden


class Gpt2Layer(CachedLayer):
    """GPT2Block with cross-attention; one layer gives query, key and value, and another key and value of the memory."""

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        own, cross = self.layer.attn, self.layer.crossattention
        return (own.num_heads, own.head_dim), (cross.num_heads, cross.head_dim)

    def cross_key_value(self, memory: Tensor) -> KeyValue:
        module = self.layer.crossattention
        key, value = module.c_attn(memory).chunk(2, dim=2)
        return split_heads(key, module.head_dim), split_heads(value, module.head_dim)

    def forward(
        self, hidden: Tensor, past: KeyValue, cross: KeyValue, self_mask: Tensor, cross_mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        layer, own, other = self.layer, self.layer.attn, self.layer.crossattention
        query, key, value = (split_heads(part, own.head_dim) for part in own.c_attn(layer.ln_1(hidden)).chunk(3, dim=2))
        present = extended(past, key, value)
        hidden = hidden + own.c_proj(attention(query, *present, self_mask, own.scaling))
        query = split_heads(other.q_attn(layer.ln_cross_attn(hidden)), other.head_dim)
        hidden = hidden + other.c_proj(attention(query, *cross, cross_mask, other.scaling))
        return hidden + layer.mlp(layer.ln_2(hidden)), present


class BertLayer(CachedLayer):
    """BertLayer and BlipTextLayer with cross-attention: Devlin et al. 2018, arXiv:1810.04805; Li et al. 2022,
    arXiv:2201.12086."""

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        own, cross = (part.self for part in (self.layer.attention, self.layer.crossattention))
        return (own.num_attention_heads, own.attention_head_size), (
            cross.num_attention_heads,
            cross.attention_head_size,
        )

    def cross_key_value(self, memory: Tensor) -> KeyValue:
        return _bert_key_value(self.layer.crossattention, memory)

    def forward(
        self, hidden: Tensor, past: KeyValue, cross: KeyValue, self_mask: Tensor, cross_mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        present = extended(past, *_bert_key_value(self.layer.attention, hidden))
        hidden = _bert_attend(self.layer.attention, hidden, present, self_mask)
        hidden = _bert_attend(self.layer.crossattention, hidden, cross, cross_mask)
        return self.layer.feed_forward_chunk(hidden), present


def bert_layer(
    layer: Any, hidden: Tensor, mask: Tensor | None, memory: Tensor | None = None, memory_mask: Tensor | None = None
) -> Tensor:
    """A whole BertLayer or BlipTextLayer: attention to ``hidden`` itself, to ``memory`` (batch, tokens, width) where
    there is one, and the feed-forward part."""
    hidden = bert_attention(layer.attention, hidden, hidden, mask)
    if memory is not None:
        hidden = bert_attention(layer.crossattention, hidden, memory, memory_mask)
    result: Tensor = layer.feed_forward_chunk(hidden)
    return result


def bert_attention(module: Any, hidden: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
    """A BertAttention or BlipTextAttention from ``hidden`` to ``memory``, with its output, residual and norm."""
    return _bert_attend(module, hidden, _bert_key_value(module, memory), mask)


def _bert_key_value(module: Any, states: Tensor) -> KeyValue:
    own = module.self
    size = own.attention_head_size
    return split_heads(own.key(states), size), split_heads(own.value(states), size)


def _bert_attend(module: Any, hidden: Tensor, key_value: KeyValue, mask: Tensor | None) -> Tensor:
    own = module.self
    query = split_heads(own.query(hidden), own.attention_head_size)
    context = attention(query, *key_value, mask, own.attention_head_size**-0.5)
    result: Tensor = module.output(context, hidden)
    return result


class BartEmbeddings(nn.Module):
    """Of a TrOCRDecoder, BartDecoder or MBartDecoder: input_ids and positions (batch, new) -> hidden (batch, new,
    width)."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.tokens = decoder.embed_tokens
        self.positions = decoder.embed_positions
        self.norm = decoder.layernorm_embedding or nn.Identity()
        self.padding = None
        if not isinstance(self.positions, nn.Embedding):
            self.padding = self.positions.padding_idx
            self.register_buffer("sinusoids", self.positions.weights.clone(), persistent=False)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        if self.padding is None:
            places = functional.embedding(positions + self.positions.offset, self.positions.weight)
        else:  # sinusoidal: padding has no place of its own and is not counted
            counted = input_ids.ne(self.padding).to(torch.int64)
            before = positions[:, :1]
            places = self.get_buffer("sinusoids")[(counted.cumsum(dim=1) + before) * counted + self.padding]
        hidden: Tensor = self.norm(self.tokens(input_ids) + places)
        return hidden


class Gpt2Embeddings(nn.Module):
    """Of a GPT2Model: input_ids and positions (batch, new) -> hidden (batch, new, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tokens = model.wte
        self.positions = model.wpe

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden: Tensor = self.tokens(input_ids) + self.positions(positions)
        return hidden


class BertEmbeddings(nn.Module):
    """Of a BertModel or BlipTextModel: input_ids and positions (batch, new) -> hidden (batch, new, width)."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.kinds = hasattr(embeddings, "token_type_embeddings")

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        kinds = {"token_type_ids": torch.zeros_like(input_ids)} if self.kinds else {}
        hidden: Tensor = self.embeddings(input_ids=input_ids, position_ids=positions, **kinds)
        return hidden


def decoder_of(model: Any) -> CachedDecoder:
    """A transformers causal language model with cross-attention as the ``decoder`` component's module.

    Raises:
        VlmEdgeError: this file doesn't know how its layers compute.
    """
    kind = type(model).__name__
    if kind in ("TrOCRForCausalLM", "MBartForCausalLM"):
        decoder = model.model.decoder
        norm_first = kind == "MBartForCausalLM"
        head = nn.Sequential(decoder.layer_norm, model.get_output_embeddings()) if norm_first else None
        layers = [BartLayer(layer, norm_first) for layer in decoder.layers]
        return CachedDecoder(BartEmbeddings(decoder), layers, head or model.get_output_embeddings())
    if kind == "GPT2LMHeadModel":
        base = model.transformer
        return CachedDecoder(Gpt2Embeddings(base), map(Gpt2Layer, base.h), nn.Sequential(base.ln_f, model.lm_head))
    if kind == "BertLMHeadModel":
        base = model.bert
        return CachedDecoder(BertEmbeddings(base.embeddings), map(BertLayer, base.encoder.layer), model.cls)
    raise VlmEdgeError(
        f"config.json: decoder: a {kind}; known: BertLMHeadModel, GPT2LMHeadModel, MBartForCausalLM, TrOCRForCausalLM",
        "add how its layers compute to vlm_edge/families/parts/text_decoders.py, as docs/writing-a-family.md says",
    )
