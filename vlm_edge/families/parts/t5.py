"""T5's layers as components: Raffel et al. 2019, arXiv:1910.10683, as transformers' T5ForConditionalGeneration.

Scores are not scaled, and get a bias by the distance between two tokens, which all layers share; distances fall into
buckets (section 2.1), read from a table here, so that no rounding of a logarithm puts one into another bucket.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.families.parts.attention import attention, padding_mask, split_heads
from vlm_edge.families.parts.cached_decoder import CachedLayer, KeyValue, MaskedDecoder, extended


class RelativeBias(nn.Module):
    """(new, past) -> what is added to the scores of ``new`` queries behind ``past`` tokens (1, heads, new, past + new).

    Args:
        module: the T5Attention that has the table of biases.
        both_ways: whether what comes after a token is told apart from what comes before (the encoder's).
    """

    def __init__(self, module: Any, both_ways: bool) -> None:
        super().__init__()
        self.table = module.relative_attention_bias
        self.farthest = module.relative_attention_max_distance
        distances = torch.arange(-self.farthest, self.farthest + 1)
        buckets = module._relative_position_bucket(
            distances, both_ways, module.relative_attention_num_buckets, self.farthest
        )
        self.register_buffer("buckets", buckets, persistent=False)

    def forward(self, new: int, past: int) -> Tensor:
        buckets = self.get_buffer("buckets")
        queries = torch.arange(past, past + new, device=buckets.device)[:, None]
        distances = torch.arange(past + new, device=buckets.device)[None, :] - queries
        places = distances.clamp(-self.farthest, self.farthest) + self.farthest
        bias: Tensor = self.table(buckets[places]).permute(2, 0, 1)[None]
        return bias


class T5Encoder(nn.Module):
    """embeds (batch, tokens, width), attention_mask (batch, tokens) -> the last hidden states."""

    def __init__(self, stack: Any) -> None:
        super().__init__()
        self.blocks = stack.block
        self.norm = stack.final_layer_norm
        self.bias = RelativeBias(stack.block[0].layer[0].SelfAttention, both_ways=True)

    def forward(self, embeds: Tensor, attention_mask: Tensor) -> Tensor:
        mask = padding_mask(attention_mask) + self.bias(embeds.shape[1], 0)
        hidden = embeds
        for block in self.blocks:
            first, last = block.layer
            states = first.layer_norm(hidden)
            hidden = hidden + _attended(first.SelfAttention, states, _key_value(first.SelfAttention, states), mask)
            hidden = last(hidden)
        result: Tensor = self.norm(hidden)
        return result


class T5Layer(CachedLayer):
    """T5Block of a decoder; ``self_mask`` holds the relative bias."""

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        own, cross = self.layer.layer[0].SelfAttention, self.layer.layer[1].EncDecAttention
        return (own.n_heads, own.key_value_proj_dim), (cross.n_heads, cross.key_value_proj_dim)

    def cross_key_value(self, memory: Tensor) -> KeyValue:
        return _key_value(self.layer.layer[1].EncDecAttention, memory)

    def forward(
        self, hidden: Tensor, past: KeyValue, cross: KeyValue, self_mask: Tensor, cross_mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        own, other, last = self.layer.layer
        states = own.layer_norm(hidden)
        present = extended(past, *_key_value(own.SelfAttention, states))
        hidden = hidden + _attended(own.SelfAttention, states, present, self_mask)
        hidden = hidden + _attended(other.EncDecAttention, other.layer_norm(hidden), cross, cross_mask)
        return last(hidden), present


class T5Embeddings(nn.Module):
    """input_ids (batch, new) -> hidden (batch, new, width): T5 has no positions here."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden: Tensor = self.table(input_ids)
        return hidden


class T5Head(nn.Module):
    """hidden -> logits: the last norm, a scale where the checkpoint's output layer is its table, the output layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm = model.decoder.final_layer_norm
        self.scale = model.model_dim**-0.5 if model.config.scale_decoder_outputs else 1.0
        self.head = model.lm_head

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(hidden) * self.scale)
        return logits


class T5Decoder(MaskedDecoder):
    """A T5ForConditionalGeneration's decoder: self-attention's mask is causal and has the relative bias."""

    def __init__(self, model: Any) -> None:
        blocks = model.decoder.block
        super().__init__(T5Embeddings(model.decoder.embed_tokens), [T5Layer(block) for block in blocks], T5Head(model))
        self.bias = RelativeBias(blocks[0].layer[0].SelfAttention, both_ways=False)

    def self_mask(self, tokens: Tensor, new: int) -> Tensor:
        bias: Tensor = self.bias(new, tokens.shape[1] - new)
        return super().self_mask(tokens, new) + bias


def _key_value(module: Any, states: Tensor) -> KeyValue:
    size = module.key_value_proj_dim
    return split_heads(module.k(states), size), split_heads(module.v(states), size)


def _attended(module: Any, states: Tensor, key_value: KeyValue, mask: Tensor | None) -> Tensor:
    """A T5Attention from ``states`` to given keys and values, its output projection included."""
    query = split_heads(module.q(states), module.key_value_proj_dim)
    result: Tensor = module.o(attention(query, *key_value, mask, 1.0))
    return result
