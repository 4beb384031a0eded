"""Tensors under the names that transformers saves, which for some models are not those of its own code.

transformers 5 renamed modules and kept the files' names; from_pretrained converts on the way in
(core_model_loading.py, convert_and_load_state_dict_in_model), by the rules of conversion_mapping.py used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key


def as_in_model(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under the names of ``model``'s own tensors; as it is where they are these already.

    Names that no rule knows are kept, for :func:`load_weights` to judge.
    """
    expected = model.state_dict()
    if state.keys() <= expected.keys():
        return dict(state)
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    collected: dict[str, Any] = {}
    for name in sorted(state, key=dot_natural_key):
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, expected)
        if new not in expected:
            new, pattern = name, None
        rule = deepcopy(by_pattern[pattern]) if pattern else WeightRenaming(name, new)
        collected.setdefault(new, rule).add_tensor(new, name, pattern or name, state[name])
    converted: dict[str, Tensor] = {}
    for first, rule in collected.items():
        for name, value in rule.convert(first, model=model, config=model.config).items():
            converted[name] = value[0] if isinstance(value, list) else value
    return converted
