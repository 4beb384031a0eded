"""Attention modules by the names that transformers gives their parts, so that families need not spell sites out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vlm_edge.families.base import AttentionRole, AttentionSite

_CROSS = ("crossattention", "encoder_attn")
"""Names of modules that attend to something else than their own input."""
_GATED_CROSS = "cross_attn"
"""The name of gated cross-attention, in whose sites several queries may share a key."""


def named_sites(model: nn.Module, places: Mapping[str, str]) -> list[AttentionSite]:
    """Every attention of ``model`` whose query, key and value are Linears of their own, in the model's order.

    Two forms are known: one module with q_proj, k_proj, v_proj and out_proj or o_proj (CLIP, BART, Llama), and a module
    with query, key and value in a parent that has output.dense (BERT, BLIP, MobileViT). Self-attention whose queries
    share keys is left out.

    Args:
        model: paths are dotted names from it.
        places: {dotted name of a module: the component that all below it belong to}; the first that holds counts, ""
            holds for every module, and what lies in none is left out.
    """
    sites = []
    for path, module in model.named_modules():
        component = next((name for place, name in places.items() if not place or path.startswith(f"{place}.")), None)
        parent = path.rpartition(".")[0]
        joined = [[f"{path}.{name}" for name in ("q_proj", "k_proj", "v_proj", out)] for out in ("out_proj", "o_proj")]
        apart = [*(f"{path}.{name}" for name in ("query", "key", "value")), f"{parent}.output.dense"]
        parts = next((parts for parts in (*joined, apart) if all(_linear(model, part) for part in parts)), None)
        if component is not None and parts is not None:
            sites.append(_site(path, module, parts, component))
    return [site for site in sites if site.queries == 1 or site.role is AttentionRole.GATED_CROSS]


def _site(path: str, module: Any, parts: list[str], component: str) -> AttentionSite:
    names = path.split(".")
    role = AttentionRole.CROSS if any(name.startswith(_CROSS) for name in names) else AttentionRole.SELF
    head_dim = getattr(module, "head_dim", None) or module.attention_head_size
    queries, keys = (module.get_submodule(part.rpartition(".")[2]).out_features for part in parts[:2])
    heads = next((name for name in ("num_heads", "num_attention_heads") if hasattr(module, name)), "num_heads")
    q, k, v, out = parts
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
        num_heads_attr=heads,
        all_head_size_attr="all_head_size" if hasattr(module, "all_head_size") else None,
        queries=queries // keys,
        num_key_heads_attr="num_key_value_heads" if hasattr(module, "num_key_value_heads") else None,
    )


def _linear(model: nn.Module, path: str) -> bool:
    """Whether ``model`` has a Linear of that dotted name."""
    found: nn.Module | None = model
    for name in path.split("."):
        found = found._modules.get(name) if found is not None else None
    return isinstance(found, nn.Linear)
