"""Attention modules by the names that transformers gives their parts, so that families need not spell sites out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from vlm_edge.families.base import AttentionRole, AttentionSite

_CROSS = ("crossattention", "encoder_attn", "EncDecAttention")
"""Names of modules that attend to something else than their own input."""
_GATED_CROSS = "cross_attn"
"""The name of gated cross-attention, in whose sites several queries may share a key."""


def named_sites(model: nn.Module, places: Mapping[str, str]) -> list[AttentionSite]:
    """Every attention of ``model`` whose query, key and value can lose heads, in the model's order.

    Known forms: one module with q_proj, k_proj, v_proj and out_proj or o_proj (CLIP, BART, Llama), a module with query,
    key and value in a parent that has output.dense (BERT, BLIP, MobileViT), GPT-2's c_attn and q_attn, and T5's cross-
    attention. Left out are self-attention whose queries share keys, and T5's, whose layers share a bias by heads.

    Args:
        model: paths are dotted names from it.
        places: {dotted name of a module: the component that all below it belong to}; the first that holds counts, ""
            holds for every module, and what lies in none is left out.
    """
    sites = []
    for path, _ in model.named_modules():
        component = next((name for place, name in places.items() if not place or path.startswith(f"{place}.")), None)
        parent, _, name = path.rpartition(".")
        joined = [[f"{path}.{part}" for part in ("q_proj", "k_proj", "v_proj", out)] for out in ("out_proj", "o_proj")]
        apart = [*(f"{path}.{part}" for part in ("query", "key", "value")), f"{parent}.output.dense"]
        gpt2 = [[f"{path}.{part}" for part in (query, "c_attn", "c_attn", "c_proj")] for query in ("q_attn", "c_attn")]
        t5 = [[f"{path}.{part}" for part in "qkvo"]] if name == "EncDecAttention" else []
        forms = (*joined, apart, *gpt2, *t5)
        parts = next((parts for parts in forms if all(_layer(model, part) for part in parts)), None)
        if component is not None and parts is not None:
            sites.append(_site(model, path, parts, component))
    return [site for site in sites if site.queries == 1 or site.role is AttentionRole.GATED_CROSS]


def _site(model: nn.Module, path: str, parts: list[str], component: str) -> AttentionSite:
    names, module = path.split("."), model.get_submodule(path)
    role = AttentionRole.CROSS if any(name.startswith(_CROSS) for name in names) else AttentionRole.SELF
    sizes = ("head_dim", "attention_head_size", "key_value_proj_dim")
    head_dim = next(getattr(module, size) for size in sizes if hasattr(module, size))
    q, k, v, out = parts
    queries, keys = (_features(model, part) // (q, k, v).count(part) for part in (q, k))

    def named(*known: str) -> str | None:
        return next((name for name in known if hasattr(module, name)), None)

    return AttentionSite(
        path=path,
        role=AttentionRole.GATED_CROSS if names[-1] == _GATED_CROSS else role,
        component=component,
        num_heads=keys // head_dim,
        head_dim=head_dim,
        q=q,
        k=k,
        v=v,
        out=out,
        num_heads_attr=named("num_heads", "num_attention_heads", "n_heads") or "num_heads",
        all_head_size_attr=named("all_head_size", "inner_dim", "split_size"),
        queries=queries // keys,
        num_key_heads_attr=named("num_key_value_heads"),
    )


def _features(model: nn.Module, path: str) -> int:
    """The number of a layer's outputs."""
    layer: Any = model.get_submodule(path)
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.nf)


def _layer(model: nn.Module, path: str) -> bool:
    """Whether ``model`` has a Linear or GPT-2's Conv1D of that dotted name."""
    found: nn.Module | None = model
    for name in path.split("."):
        found = found._modules.get(name) if found is not None else None
    return isinstance(found, (nn.Linear, Conv1D))
