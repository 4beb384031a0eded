"""OPT, the language model of BLIP-2: Zhang et al. 2022, arXiv:2205.01068, as transformers' OPTForCausalLM.

Positions are learned and added to the embeddings; norms come before each half of a layer, or in one size behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.families.parts.attention import attention, split_heads
from vlm_edge.families.parts.llm import Decoder


class OptAttention(nn.Module):
    """One self-attention, without rotation and without a window."""

    window = None

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, hidden: Tensor, mask: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        module = self.module
        query, key, value = (
            split_heads(project(hidden), module.head_dim) for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        return module.out_proj(attention(query, key, value, mask, module.scaling)), key, value


class OptLayer(nn.Module):
    """One layer; called as :class:`vlm_edge.families.parts.llm.DecoderLayer`, whose rotation it leaves alone."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.self_attention = OptAttention(layer.self_attn)

    def forward(
        self, hidden: Tensor, rotary: object, mask: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        layer = self.layer
        before = layer.self_attn_layer_norm if layer.do_layer_norm_before else nn.Identity()
        behind = nn.Identity() if layer.do_layer_norm_before else layer.self_attn_layer_norm
        attended, key, value = self.self_attention(before(hidden), mask, past)
        hidden = behind(hidden + attended)
        before = layer.final_layer_norm if layer.do_layer_norm_before else nn.Identity()
        behind = nn.Identity() if layer.do_layer_norm_before else layer.final_layer_norm
        return behind(hidden + layer.fc2(layer.activation_fn(layer.fc1(before(hidden))))), key, value


class OptDecoder(Decoder):
    """As :class:`Decoder`, for an OPT whose embeddings are as wide as its layers (BLIP-2 takes no other)."""

    def __init__(self, decoder: Any, head: nn.Module, image_token_id: int) -> None:
        nn.Module.__init__(self)
        self.embed_tokens = decoder.embed_tokens
        self.layers = nn.ModuleList([OptLayer(layer) for layer in decoder.layers])
        self.embed_positions = decoder.embed_positions
        self.norm = decoder.final_layer_norm or nn.Identity()
        self.head = head
        self.image_token_id = image_token_id
        self.softcap = None

    def positions(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Any]:
        """The embeddings with their positions; nothing to rotate."""
        table = self.embed_positions
        places = nn.functional.embedding(position_ids + table.offset, table.weight)
        return hidden + places, None
