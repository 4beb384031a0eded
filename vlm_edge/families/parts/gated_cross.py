"""Language models that see images through gated cross-attention (the Flamingo line: Alayrac et al. 2022,
arXiv:2204.14198): layers of their own between the language model's, whose outputs are added through tanh gates.

    hidden + tanh(gate) cross_attention(hidden, image),   then   hidden + tanh(gate') mlp(hidden)        (section 2.2)

An image's keys and values don't depend on the text: the connector computes them once. The decoder is told by
``cross_attention_mask`` which of them each token attends to.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.families.base import ComponentExport
from vlm_edge.families.parts.attention import additive_mask, attention, split_heads
from vlm_edge.families.parts.component import BATCH, PAST, cache_example, cache_names, decoder_export
from vlm_edge.families.parts.language_family import LanguageFamily
from vlm_edge.families.parts.llm import NEW, DecoderLayer, causal_mask, key_shape
from vlm_edge.processing.manifest import TOTAL

IMAGE_TOKENS = 6
"""Image tokens in the example inputs."""


class ImageKeyValues(nn.Module):
    """image_features (images, ..., hidden) -> cross_key_values.{layer}.key|value (images, groups, image_tokens,
    head_dim) of ``layers`` by number: their own Linears on what ``resampler`` makes of the features."""

    def __init__(self, resampler: nn.Module, layers: Mapping[int, Any]) -> None:
        super().__init__()
        self.resampler = resampler
        self.attentions = nn.ModuleList([layer.layer.cross_attn for layer in layers.values()])
        self.key_norms = nn.ModuleList([layer.key_norm for layer in layers.values()])
        self.outputs = cache_names("cross_key_values", layers)

    def forward(self, image_features: Tensor) -> tuple[Tensor, ...]:
        states = self.resampler(image_features)
        states = states.reshape(states.shape[0], -1, states.shape[-1])
        attentions: Any = self.attentions
        outputs: list[Tensor] = []
        for module, norm in zip(attentions, self.key_norms, strict=True):
            key = norm(split_heads(module.k_proj(states), module.head_dim))
            outputs += [key, split_heads(module.v_proj(states), module.head_dim)]
        return tuple(outputs)


class GatedCrossLayer(nn.Module):
    """hidden (batch, new, width), keys and values of the images, the additive mask, whether a token attends to any
    (batch, new, 1), whether it sees an image (batch, new, 1) -> hidden.

    ``gated_rows``: tokens that see no image get nothing from the MLP either.
    """

    def __init__(self, layer: Any, gates: tuple[nn.Parameter, nn.Parameter], norms: str, *, gated_rows: bool) -> None:
        """``norms``: the names of the attention's norms of queries and keys, with {} for q and k; some have none."""
        super().__init__()
        self.layer = layer
        self.attention_gate, self.mlp_gate = gates
        self.query_norm, self.key_norm = (getattr(layer.cross_attn, norms.format(of), nn.Identity()) for of in "qk")
        self.gated_rows = gated_rows

    def forward(
        self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor, attends: Tensor, sees: Tensor
    ) -> Tensor:
        layer: Any = self.layer
        module = layer.cross_attn
        query = self.query_norm(split_heads(module.q_proj(layer.input_layernorm(hidden)), module.head_dim))
        attended = module.o_proj(attention(query, key, value, mask, module.scaling))
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

    last_tokens = 1
    """As :attr:`vlm_edge.families.parts.llm.Decoder.last_tokens`."""

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
        return (self.head(self.norm(hidden[:, -self.last_tokens :])), *presents)

    def cache_shapes(self) -> dict[int, tuple[int, int]]:
        """{number: (groups, head_dim)} of the self-attentions' keys and values."""
        layers = zip(self.numbers, self.layers, strict=True)
        own = {number: layer for number, layer in layers if isinstance(layer, DecoderLayer)}
        return {number: key_shape(layer.self_attention.module) for number, layer in own.items()}

    def cross_layers(self) -> dict[int, GatedCrossLayer]:
        """The layers of gated cross-attention by their number."""
        layers = zip(self.numbers, self.layers, strict=True)
        return {number: layer for number, layer in layers if isinstance(layer, GatedCrossLayer)}

    def cross_shapes(self) -> dict[int, tuple[int, int]]:
        """{number: (groups, head_dim)} of the cross-attentions' keys and values."""
        layers: Any = self.cross_layers()
        return {number: key_shape(layer.layer.cross_attn) for number, layer in layers.items()}


class GatedFamily(LanguageFamily):
    """A language model with gated cross-attention: the connector gives keys and values, not embeddings."""

    @abstractmethod
    def decoder(self, model: Any) -> GatedDecoder:
        """The language model, its layers of cross-attention among the others."""

    @abstractmethod
    def resampler(self, model: Any) -> nn.Module:
        """image_features -> the states that cross-attention reads."""

    def connector(self, model: Any) -> nn.Module:
        return ImageKeyValues(self.resampler(model), self.decoder(model).cross_layers())

    def image_tokens(self, config: Any) -> int:
        """The one that stands for the image in the text; the image itself is in the cross-attention."""
        return 1

    def decoder_component(self, model: Any, connector: ComponentExport) -> ComponentExport:
        """In the example one token attends to no image."""
        module, generator = self.decoder(model).eval(), torch.Generator().manual_seed(2)
        attention_mask = torch.ones((BATCH, PAST + NEW), dtype=torch.int64)
        attention_mask[-1, :2] = 0
        cross_mask = torch.randint(0, 2, (BATCH, NEW, IMAGE_TOKENS), generator=generator)
        cross_mask[:, 0] = 0
        new = {0: "batch", 1: "new"}
        vocabulary = model.lm_head.out_features + getattr(model.lm_head, "out_additional_features", 0)
        inputs: dict[str, tuple[Tensor, Mapping[int, str]]] = {
            "input_ids": (torch.randint(0, vocabulary, (BATCH, NEW), generator=generator), new),
            "attention_mask": (attention_mask, {0: "batch", 1: TOTAL}),
            "position_ids": (PAST + torch.arange(NEW).repeat(BATCH, 1), new),
            "cross_attention_mask": (cross_mask, new | {2: "image_tokens"}),
        }
        if module.gated_rows:
            inputs["cross_row_mask"] = (cross_mask.amax(dim=-1), new)
        seen = {0: "batch", 2: "image_tokens"}
        inputs |= cache_example("cross_key_values", module.cross_shapes(), IMAGE_TOKENS, seen)
        return decoder_export(module, inputs, {0: "batch"})
