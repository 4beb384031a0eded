"""Attention modules by the names that transformers gives their parts, so that families need not spell sites out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vlm_edge.families.base import AttentionRole, AttentionSite

_CROSS = ("crossattention", "encoder_attn", "cross_attn")
"""Names of modules that attend to something else than their own input."""


def named_sites(model: nn.Module, component_of: Callable[[str], str]) -> list[AttentionSite]:
    """Every attention below ``model`` whose query, key and value are Linears of their own, in the model's order.

    Two forms are known: one module with q_proj, k_proj, v_proj and out_proj or o_proj (CLIP, ViT, BART), and a module
    with query, key and value in a parent that has output.dense (BERT, BLIP, MobileViT).

    Args:
        model: paths are dotted names from it.
        component_of: the component of a module's path.
    """
    sites = []
    for path, module in model.named_modules():
        out = next((name for name in ("out_proj", "o_proj") if isinstance(_part(module, name), nn.Linear)), None)
        if out is not None and all(isinstance(_part(module, f"{name}_proj"), nn.Linear) for name in "qkv"):
            names = (*(f"{path}.{name}_proj" for name in "qkv"), f"{path}.{out}")
            sites.append(_site(path, module, names, component_of(path)))
        if all(isinstance(_part(module, name), nn.Linear) for name in ("query", "key", "value")):
            names = (*(f"{path}.{name}" for name in ("query", "key", "value")), f"{_parent(path)}.output.dense")
            if isinstance(_part(model.get_submodule(_parent(path)), "output.dense"), nn.Linear):
                sites.append(_site(path, module, names, component_of(path)))
    return sites


def _site(path: str, module: Any, names: tuple[str, ...], component: str) -> AttentionSite:
    q, k, v, out = names
    heads = "num_heads" if hasattr(module, "num_heads") else "num_attention_heads"
    size = getattr(module, "head_dim", None) or module.attention_head_size
    cross = any(part.startswith(_CROSS) for part in path.split("."))
    return AttentionSite(
        path=path,
        role=AttentionRole.CROSS if cross else AttentionRole.SELF,
        component=component,
        num_heads=getattr(module, heads),
        head_dim=size,
        q=q,
        k=k,
        v=v,
        out=out,
        num_heads_attr=heads,
        all_head_size_attr="all_head_size" if hasattr(module, "all_head_size") else None,
    )


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _part(module: nn.Module, path: str) -> nn.Module | None:
    """The module of a dotted name below ``module``, if there is one."""
    for name in path.split("."):
        found = module._modules.get(name)
        if found is None:
            return None
        module = found
    return module
