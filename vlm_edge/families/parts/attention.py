"""Attention and its additive masks, spelled out so that exported graphs stay small.

Families call these on the model's own Linears, whose shapes pruning may have changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASKED = float(torch.finfo(torch.float32).min)
"""The number that transformers adds to a masked score."""


def visible_tokens(attention_mask: Tensor) -> Tensor:
    """(batch, tokens) int64 of 1 and 0 -> (batch, 1, 1, tokens) float32."""
    return attention_mask[:, None, None, :].to(torch.float32)


def visible_past(new: int, past: int, device: torch.device) -> Tensor:
    """(new, past + new) float32: 1 where query i may see the key, that is keys 0 .. past + i."""
    query = torch.arange(past, past + new, device=device)[:, None]
    key = torch.arange(past + new, device=device)[None, :]
    return (key <= query).to(torch.float32)


def additive_mask(visible: Tensor) -> Tensor:
    """1 and 0 -> 0 and the lowest float32, to be added to attention scores."""
    return (1.0 - visible) * MASKED


def padding_mask(attention_mask: Tensor) -> Tensor:
    """(batch, tokens) int64 of 1 and 0 -> the additive mask that hides padding (batch, 1, 1, tokens)."""
    return additive_mask(visible_tokens(attention_mask))


def split_heads(states: Tensor, head_dim: int) -> Tensor:
    """(batch, tokens, heads x head_dim) -> (batch, heads, tokens, head_dim)."""
    batch, tokens, _ = states.shape
    return states.view(batch, tokens, -1, head_dim).transpose(1, 2)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float | None = None
) -> Tensor:
    """softmax(scale q k^T + mask) v (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    Where several queries share a key (Ainslie et al. 2023, arXiv:2305.13245), the queries of a group are stacked, so
    that no key or value is copied for them.

    Args:
        query: (batch, heads, new, head_dim).
        key, value: (batch, groups, tokens, head_dim), each for heads / groups queries.
        mask: added to the scores (batch, heads, new, tokens); None where everything is seen.
        scale: of the scores.
        softcap: c turns scores x into c tanh(x / c) (Gemma 2, arXiv:2408.00118, section 2).

    Returns:
        (batch, new, heads x head_dim).
    """
    batch, heads, new, head_dim = query.shape
    groups = key.shape[1]
    stacked = query if groups == heads else query.reshape(batch, groups, heads // groups * new, head_dim)
    scores = torch.matmul(stacked, key.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if groups != heads:
        scores = scores.view(batch, heads, new, -1)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1)
    if groups != heads:
        weights = weights.view(batch, groups, heads // groups * new, -1)
    context = torch.matmul(weights, value)
    if groups != heads:
        context = context.view(batch, heads, new, head_dim)
    return context.transpose(1, 2).reshape(batch, new, heads * head_dim)
