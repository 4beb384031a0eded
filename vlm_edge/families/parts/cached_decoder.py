"""Text decoders with cross-attention as one graph for prefill and step: BLIP, TrOCR, ViT-GPT2, Florence-2.

The memory of cross-attention never changes while a text is written, so its keys and values are outputs of the component
before (:class:`CrossKeyValues`) and inputs here; self-attention's grow from step to step. A mask says which of the
cached tokens count, so that an engine may keep a cache of fixed length that fills up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.families.base import ComponentExport
from vlm_edge.families.parts.attention import additive_mask, padding_mask, visible_past, visible_tokens
from vlm_edge.families.parts.component import BATCH, PAST, cache_example, cache_names, decoder_export
from vlm_edge.processing.manifest import SELF_MASK, TOTAL

MEMORY, NEW = 7, 3
"""Sizes of the example inputs, beside those of component.py."""
KeyValue = tuple[Tensor, Tensor]
"""Keys and values, each (batch, heads, tokens, head_dim)."""


class CachedLayer(nn.Module):
    """One decoder layer: self-attention, cross-attention, feed-forward, in its architecture's order and norms."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(heads, head_dim) of self-attention, and of cross-attention."""
        raise NotImplementedError

    def cross_key_value(self, memory: Tensor) -> KeyValue:
        """Cross-attention's keys and values of what it reads, (batch, tokens, width)."""
        raise NotImplementedError

    def forward(
        self, hidden: Tensor, past: KeyValue, cross: KeyValue, self_mask: Tensor, cross_mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """hidden (batch, new, width) -> the same behind the layer, and self-attention's keys and values, past first."""
        raise NotImplementedError


def extended(past: KeyValue, key: Tensor, value: Tensor) -> KeyValue:
    """The past's keys and values, then the new tokens'."""
    return torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)


class CrossKeyValues(nn.Module):
    """memory (rows, tokens, width) -> cross_key_values.{layer}.key|value of every layer, (rows, heads, tokens,
    head_dim)."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, memory: Tensor) -> tuple[Tensor, ...]:
        layers: Any = self.layers
        return tuple(tensor for layer in layers for tensor in layer.cross_key_value(memory))

    def axes(self, rows: str, tokens: str | None = None) -> dict[str, dict[int, str]]:
        """Names and dynamic axes of what ``forward`` gives; ``tokens`` is None where their number is fixed."""
        axes = {0: rows} if tokens is None else {0: rows, 2: tokens}
        return dict.fromkeys(cache_names("cross_key_values", range(len(self.layers))), axes)


class CachedDecoder(nn.Module):
    """input_ids (batch, new), decoder_attention_mask (batch, past + new), cross_key_values.{layer}.key|value,
    past_key_values.{layer}.key|value -> logits (batch, new, vocab), present.{layer}.key|value.

    The mask is 1 for tokens and 0 where the cache holds none; the new tokens are all 1. A token's position is the
    number of tokens before it.

    Args:
        embeddings: (input_ids, positions (batch, new)) -> (batch, new, width).
        layers: in order.
        head: (batch, new, width) -> logits, a last norm included.
    """

    def __init__(self, embeddings: nn.Module, layers: Iterable[CachedLayer], head: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.layers = nn.ModuleList(layers)
        self.head = head

    def forward(self, input_ids: Tensor, tokens: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        return self.decode(input_ids, tokens, None, caches)

    def decode(
        self, input_ids: Tensor, tokens: Tensor, cross_mask: Tensor | None, caches: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """As ``forward``, with what is added to the scores of cross-attention; None where it sees everything."""
        count = 2 * len(self.layers)
        crosses, pasts = caches[:count], caches[count:]
        new = input_ids.shape[1]
        before = tokens.sum(dim=1, keepdim=True) - new
        hidden = self.embeddings(input_ids, before + torch.arange(new, device=input_ids.device))
        self_mask = self.self_mask(tokens, new)
        presents: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            part = slice(2 * index, 2 * index + 2)
            hidden, present = layer(hidden, tuple(pasts[part]), tuple(crosses[part]), self_mask, cross_mask)
            presents += present
        return (self.head(hidden), *presents)

    def self_mask(self, tokens: Tensor, new: int) -> Tensor:
        """The additive mask of self-attention: (batch, ..., new, past + new)."""
        causal = visible_past(new, tokens.shape[1] - new, tokens.device)
        return additive_mask(causal * visible_tokens(tokens))

    def cache_shapes(self) -> dict[int, tuple[int, int]]:
        """{layer: (heads, head_dim)} of self-attention's keys and values."""
        layers: Any = self.layers
        return {index: layer.sizes()[0] for index, layer in enumerate(layers)}


class MaskedDecoder(CachedDecoder):
    """As :class:`CachedDecoder`, for memories with padding: the third input is a mask (batch, memory tokens), 1 where
    cross-attention may look."""

    def forward(self, input_ids: Tensor, tokens: Tensor, *mask_and_caches: Tensor) -> tuple[Tensor, ...]:
        mask, *caches = mask_and_caches
        return self.decode(input_ids, tokens, padding_mask(mask), caches)


def cached_decoder_export(
    decoder: CachedDecoder, vocabulary: int, memory: int | str, mask: str = "attention_mask"
) -> ComponentExport:
    """The ``decoder`` component.

    Args:
        decoder: in eval mode.
        vocabulary: ids below it are drawn for the example.
        memory: how many tokens cross-attention reads, or the name of that dimension.
        mask: the name of the third input, where the decoder masks its memory.
    """
    ids = torch.randint(0, vocabulary, (BATCH, NEW), generator=torch.Generator().manual_seed(2))
    tokens = torch.ones((BATCH, PAST + NEW), dtype=torch.int64)
    tokens[-1, :2] = 0
    inputs: dict[str, tuple[Tensor, Mapping[int, str]]] = {
        "input_ids": (ids, {0: "batch", 1: "new"}),
        SELF_MASK: (tokens, {0: "batch", 1: TOTAL}),
    }
    if isinstance(decoder, MaskedDecoder):
        visible = torch.ones((BATCH, MEMORY), dtype=torch.int64)
        visible[-1, -2:] = 0
        inputs[mask] = (visible, {0: "batch", 1: str(memory)})
    layers: Any = decoder.layers
    crosses = {index: layer.sizes()[1] for index, layer in enumerate(layers)}
    axes = {0: "batch"} if isinstance(memory, int) else {0: "batch", 2: str(memory)}
    inputs |= cache_example("cross_key_values", crosses, memory if isinstance(memory, int) else MEMORY, axes)
    return decoder_export(decoder, inputs, {0: "batch", 1: "new"})
