"""Additive attention masks, written out so that exported graphs stay small."""

from __future__ import annotations

import torch
from torch import Tensor

MASKED = float(torch.finfo(torch.float32).min)
"""What transformers adds to a masked score."""


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
