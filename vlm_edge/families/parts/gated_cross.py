"""Language models that see images through gated cross-attention (the Flamingo line: Alayrac et al. 2022,
arXiv:2204.14198): layers of their own between the language model's, whose outputs are added through tanh gates.

    hidden + tanh(gate) cross_attention(hidden, image),   then   hidden + tanh(gate') mlp(hidden)        (section 2.2)

An image's keys and values don't depend on the text: the connector computes them once. The decoder is told by
``cross_attention_mask`` which of them each token attends to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.families.base import AttentionRole, AttentionSite, ComponentExport
from vlm_edge.families.parts.attention_masks import additive_mask
from vlm_edge.families.parts.llm import (
    BATCH,
    NEW,
    PAST,
    DecoderLayer,
    attend,
    causal_mask,
    join_heads,
    split_heads,
)
from vlm_edge.processing.manifest import TOTAL

IMAGE_TOKENS = 6
"""Image tokens in the example inputs."""


class CrossKeyValues(nn.Module):
    """image_features (images, ..., hidden) -> cross_key_values.{layer}.key|value (images, groups, image_tokens,
    head_dim): what ``resampler`` makes of the features, through each cross-attention's own Linears."""

    def __init__(self, resampler: nn.Module, attentions: Sequence[Any], key_norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.resampler = resampler
        self.attentions = nn.ModuleList(attentions)
        self.key_norms = nn.ModuleList(key_norms)

    def forward(self, image_features: Tensor) -> tuple[Tensor, ...]:
        states = self.resampler(image_features)
        states = states.reshape(states.shape[0], -1, states.shape[-1])
        outputs: list[Tensor] = []
        attentions: Any = self.attentions
        for attention, norm in zip(attentions, self.key_norms, strict=True):
            key = norm(split_heads(attention.k_proj(states), attention.head_dim))
            outputs += [key, split_heads(attention.v_proj(states), attention.head_dim)]
        return tuple(outputs)


class GatedCrossLayer(nn.Module):
    """hidden (batch, new, width), keys and values of the images, the additive mask, whether a token attends to any
    (batch, new, 1), whether it sees an image (batch, new, 1) -> hidden.

    ``gated_rows``: tokens that see no image get nothing from the MLP either.
    """

    def __init__(
        self,
        layer: Any,
        gates: tuple[nn.Parameter, nn.Parameter],
        query_norm: nn.Module,
        *,
        gated_rows: bool,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.attention_gate, self.mlp_gate = gates
        self.query_norm = query_norm
        self.gated_rows = gated_rows

    def forward(
        self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor, attends: Tensor, sees: Tensor
    ) -> Tensor:
        layer: Any = self.layer
        attention = layer.cross_attn
        query = self.query_norm(split_heads(attention.q_proj(layer.input_layernorm(hidden)), attention.head_dim))
        attended = attention.o_proj(join_heads(attend(query, key, value, mask, attention.scaling)))
        hidden = hidden + torch.tanh(self.attention_gate) * (attended * attends)
        moved = layer.mlp(layer.post_attention_layernorm(hidden))
        if self.gated_rows:
            moved = moved * sees
        result: Tensor = hidden + torch.tanh(self.mlp_gate) * moved
        return result


class GatedDecoder(nn.Module):
    """input_ids (batch, new), attention_mask (batch, past + new), position_ids (batch, new), cross_attention_mask
    (batch, new, image_tokens) of 1 and 0, with ``gated_rows`` also cross_row_mask (batch, new): 1 where a token sees an
    image; then cross_key_values.{layer}.key|value and past_key_values.{layer}.key|value -> logits (batch, 1,
    vocabulary) of the last token, present.{layer}.key|value.

    ``layers`` are the model's in order, by their number: a language layer or a :class:`GatedCrossLayer`.
    """

    def __init__(
        self,
        embed_tokens: nn.Module,
        layers: Sequence[tuple[int, nn.Module]],
        norm: nn.Module,
        rotary: nn.Module,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.numbers = [number for number, _ in layers]
        self.layers = nn.ModuleList(
            [layer if isinstance(layer, GatedCrossLayer) else DecoderLayer(layer) for _, layer in layers]
        )
        self.norm = norm
        self.rotary = rotary
        self.head = head
        self.gated_rows = any(isinstance(layer, GatedCrossLayer) and layer.gated_rows for layer in self.layers)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cross_attention_mask: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        attends = cross_attention_mask.amax(dim=-1, keepdim=True).to(torch.float32)
        sees, caches = (rest[0][..., None].to(torch.float32), rest[1:]) if self.gated_rows else (attends, rest)
        count = 2 * len(self.cross_shapes())
        crosses, pasts = list(caches[:count]), list(caches[count:])
        mask = causal_mask(attention_mask, input_ids.shape[1])
        cross_mask = additive_mask(cross_attention_mask[:, None].to(torch.float32))
        hidden: Tensor = self.embed_tokens(input_ids)
        cos, sin = self.rotary(hidden, position_ids)
        rotary = (cos.unsqueeze(1), sin.unsqueeze(1))
        presents: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, GatedCrossLayer):
                hidden = layer(hidden, crosses.pop(0), crosses.pop(0), cross_mask, attends, sees)
            else:
                hidden, key, value = layer(hidden, rotary, mask, (pasts.pop(0), pasts.pop(0)))
                presents += [key, value]
        return (self.head(self.norm(hidden[:, -1:])), *presents)

    def cache_shapes(self) -> dict[int, tuple[int, int]]:
        """{number: (groups, head_dim)} of the self-attentions' keys and values."""
        return self._shapes(lambda layer: None if isinstance(layer, GatedCrossLayer) else layer.layer.self_attn)

    def cross_shapes(self) -> dict[int, tuple[int, int]]:
        """{number: (groups, head_dim)} of the cross-attentions' keys and values."""
        return self._shapes(lambda layer: layer.layer.cross_attn if isinstance(layer, GatedCrossLayer) else None)

    def _shapes(self, attention_of: Any) -> dict[int, tuple[int, int]]:
        attentions = zip(self.numbers, map(attention_of, self.layers), strict=True)
        return {
            number: (attention.k_proj.out_features // attention.head_dim, attention.head_dim)
            for number, attention in attentions
            if attention is not None
        }


def cross_component(module: nn.Module, example: dict[str, Tensor], outputs: Sequence[str]) -> ComponentExport:
    """The graph of a module whose inputs and outputs all have the images as their first dimension, and no other
    dynamic one."""
    with torch.no_grad():
        values = module.eval()(*example.values())
    return ComponentExport(
        module=module,
        example=example,
        dynamic={name: {0: "images"} for name in example},
        output_shapes={name: ("images", *value.shape[1:]) for name, value in zip(outputs, values, strict=True)},
    )


def cross_names(shapes: Mapping[int, tuple[int, int]]) -> list[str]:
    """The connector's outputs."""
    return [f"cross_key_values.{number}.{part}" for number in shapes for part in ("key", "value")]


def gated_decoder_export(module: GatedDecoder, vocabulary: int) -> ComponentExport:
    """The graph of a decoder with gated cross-attention; in the example one token attends to no image."""
    generator = torch.Generator().manual_seed(2)
    attention_mask = torch.ones((BATCH, PAST + NEW), dtype=torch.int64)
    attention_mask[-1, :2] = 0
    cross_mask = torch.randint(0, 2, (BATCH, NEW, IMAGE_TOKENS), generator=generator)
    cross_mask[:, 0] = 0
    example = {
        "input_ids": torch.randint(0, vocabulary, (BATCH, NEW), generator=generator),
        "attention_mask": attention_mask,
        "position_ids": PAST + torch.arange(NEW).repeat(BATCH, 1),
        "cross_attention_mask": cross_mask,
    }
    new = {0: "batch", 1: "new"}
    dynamic = {
        "input_ids": new,
        "attention_mask": {0: "batch", 1: TOTAL},
        "position_ids": new,
        "cross_attention_mask": new | {2: "image_tokens"},
    }
    if module.gated_rows:
        example["cross_row_mask"], dynamic["cross_row_mask"] = cross_mask.amax(dim=-1), new
    outputs: dict[str, tuple[int | str, ...]] = {"logits": ("batch", 1, vocabulary)}
    for name, (groups, head_dim) in _by_part("cross_key_values", module.cross_shapes()):
        example[name] = torch.randn((BATCH, groups, IMAGE_TOKENS, head_dim), generator=generator)
        dynamic[name] = {0: "batch", 2: "image_tokens"}
    for name, (groups, head_dim) in _by_part("past_key_values", module.cache_shapes()):
        example[name] = torch.randn((BATCH, groups, PAST, head_dim), generator=generator)
        dynamic[name] = {0: "batch", 2: "past"}
        outputs[name.replace("past_key_values", "present")] = ("batch", groups, TOTAL, head_dim)
    return ComponentExport(
        module=module.eval(),
        example=example,
        dynamic=dynamic,
        output_shapes=outputs,
        may_be_empty=frozenset({"past"}),
    )


def _by_part(prefix: str, shapes: Mapping[int, tuple[int, int]]) -> list[tuple[str, tuple[int, int]]]:
    return [(f"{prefix}.{number}.{part}", shape) for number, shape in shapes.items() for part in ("key", "value")]


def gated_cross_sites(model: nn.Module, prefix: str) -> list[AttentionSite]:
    """Every gated cross-attention below ``prefix`` that ends in ``cross_attn``; its heads are its keys."""
    modules: list[tuple[str, Any]] = [(path, module) for path, module in model.named_modules()]
    return [
        AttentionSite(
            path=path,
            role=AttentionRole.GATED_CROSS,
            component="decoder",
            num_heads=module.k_proj.out_features // module.head_dim,
            head_dim=module.head_dim,
            q=f"{path}.q_proj",
            k=f"{path}.k_proj",
            v=f"{path}.v_proj",
            out=f"{path}.o_proj",
            num_heads_attr="num_heads",
            queries=module.q_proj.out_features // module.k_proj.out_features,
            num_key_heads_attr="num_key_value_heads" if hasattr(module, "num_key_value_heads") else None,
        )
        for path, module in modules
        if path.startswith(f"{prefix}.") and path.endswith(".cross_attn")
    ]
