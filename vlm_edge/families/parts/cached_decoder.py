"""Text decoders with cross-attention as one graph for prefill and step: what BLIP, TrOCR, ViT-GPT2, Florence-2 share.

What cross-attention reads never changes while a text is written, so its keys and values are outputs of the component
before (:func:`cross_key_values`) and inputs here; self-attention's grow from step to step. Which of the cached tokens
count is told by a mask, so that an engine may keep a cache of fixed length that fills up. The attention is spelled out
on the model's own modules, whose shapes pruning may have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vlm_edge.families.base import ComponentExport
from vlm_edge.families.parts.attention_masks import additive_mask, visible_past, visible_tokens
from vlm_edge.processing.manifest import SELF_MASK, TOTAL

BATCH, MEMORY, NEW, PAST = 2, 7, 3, 5
"""Sizes of the example inputs; all differ, so that no two dynamic dimensions are taken for one."""
KeyValue = tuple[Tensor, Tensor]
"""Keys and values, each (batch, heads, tokens, head_dim)."""


def split_heads(states: Tensor, head_dim: int) -> Tensor:
    """(batch, tokens, heads x head_dim) -> (batch, heads, tokens, head_dim)."""
    batch, tokens, _ = states.shape
    return states.view(batch, tokens, -1, head_dim).transpose(1, 2)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + mask) v (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    Args:
        query: (batch, heads, new, head_dim).
        key, value: (batch, heads, tokens, head_dim).
        mask: added to the scores (batch, heads, new, tokens); None where everything is seen.

    Returns:
        (batch, new, heads x head_dim).
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores + mask
    context = torch.matmul(torch.softmax(scores, dim=-1), value).transpose(1, 2)
    batch, tokens, heads, head_dim = context.shape
    return context.reshape(batch, tokens, heads * head_dim)


class CachedLayer(nn.Module):
    """One decoder layer: self-attention, cross-attention, feed-forward, in its architecture's order and norms."""

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


def cross_key_values(layers: Iterable[CachedLayer], memory: Tensor) -> tuple[Tensor, ...]:
    """Every layer's keys and values of ``memory``, in the order of :func:`cross_names`."""
    return tuple(tensor for layer in layers for tensor in layer.cross_key_value(memory))


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
        """What is added to the scores of self-attention: (batch, ..., new, past + new)."""
        causal = visible_past(new, tokens.shape[1] - new, tokens.device)
        return additive_mask(causal * visible_tokens(tokens))


class MaskedDecoder(CachedDecoder):
    """As :class:`CachedDecoder`, for memories with padding: the third input is a mask (batch, memory tokens), 1 where
    cross-attention may look."""

    def forward(self, input_ids: Tensor, tokens: Tensor, *mask_and_caches: Tensor) -> tuple[Tensor, ...]:
        mask, *caches = mask_and_caches
        return self.decode(input_ids, tokens, additive_mask(visible_tokens(mask)), caches)


def cache_names(prefix: str, layers: int) -> list[str]:
    """``PREFIX.{layer}.key`` and ``.value``, layer by layer."""
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def cross_shapes(layers: Sequence[CachedLayer], batch: str, tokens: int | str) -> dict[str, tuple[int | str, ...]]:
    """Names and shapes of what :func:`cross_key_values` gives."""
    sizes = [layer.sizes()[1] for layer in layers for _ in ("key", "value")]
    names = cache_names("cross_key_values", len(layers))
    return {name: (batch, heads, tokens, head_dim) for name, (heads, head_dim) in zip(names, sizes, strict=True)}


def decoder_export(
    decoder: CachedDecoder, vocabulary: int, memory: int | str, mask: str = "attention_mask"
) -> ComponentExport:
    """The ``decoder`` component.

    Args:
        decoder: in eval mode.
        vocabulary: ids below it are drawn for the example.
        memory: how many tokens cross-attention reads, or the name of that dimension.
        mask: name of a :class:`MaskedDecoder`'s third input.
    """
    generator = torch.Generator().manual_seed(2)
    layers: list[CachedLayer] = list(decoder.layers)  # type: ignore[arg-type]
    sizes = [size for layer in layers for size in (layer.sizes()[0],) * 2]
    example = {"input_ids": torch.randint(0, vocabulary, (BATCH, NEW), generator=generator)}
    tokens = torch.ones((BATCH, PAST + NEW), dtype=torch.int64)
    tokens[-1, :2] = 0
    example[SELF_MASK] = tokens
    dynamic: dict[str, dict[int, str]] = {
        "input_ids": {0: "batch", 1: "new"},
        SELF_MASK: {0: "batch", 1: TOTAL},
    }
    if isinstance(decoder, MaskedDecoder):
        visible = torch.ones((BATCH, MEMORY), dtype=torch.int64)
        visible[-1, -2:] = 0
        example[mask], dynamic[mask] = visible, {0: "batch", 1: str(memory)}
    crosses = [size for layer in layers for size in (layer.sizes()[1],) * 2]
    for name, (heads, head_dim) in zip(cache_names("cross_key_values", len(layers)), crosses, strict=True):
        example[name] = torch.randn(
            (BATCH, heads, memory if isinstance(memory, int) else MEMORY, head_dim), generator=generator
        )
        dynamic[name] = {0: "batch"} if isinstance(memory, int) else {0: "batch", 2: str(memory)}
    for name, (heads, head_dim) in zip(cache_names("past_key_values", len(layers)), sizes, strict=True):
        example[name] = torch.randn((BATCH, heads, PAST, head_dim), generator=generator)
        dynamic[name] = {0: "batch", 2: "past"}
    with torch.no_grad():
        logits = decoder(*example.values())[0]
    presents = zip(cache_names("present", len(layers)), sizes, strict=True)
    return ComponentExport(
        module=decoder,
        example=example,
        dynamic=dynamic,
        output_shapes={"logits": ("batch", "new", logits.shape[2])}
        | {name: ("batch", heads, TOTAL, head_dim) for name, (heads, head_dim) in presents},
        may_be_empty=frozenset({"past"}),
    )
