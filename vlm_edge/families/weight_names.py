"""Tensors under the names that this transformers gives them: most published files carry older ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings


def current_names(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with every name that ``model`` does not have renamed as transformers' own loading does, where that
    gives one that it has. Names that stay unknown are left for the loading to report."""
    expected = model.state_dict().keys()
    if state.keys() <= expected or not isinstance(model, PreTrainedModel):
        return state
    renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    renamed = {}
    for name, tensor in state.items():
        current = name if name in expected else _renamed(name, renamings, model.base_model_prefix, expected)
        renamed[current] = tensor
    return renamed


def _renamed(name: str, renamings: list[Any], prefix: str, expected: Any) -> str:
    current: str = apply_renamings(name, renamings)
    for candidate in (current, f"{prefix}.{current}", current.removeprefix(f"{prefix}.")):
        if candidate in expected:
            return candidate
    return name
