"""Facts of stages held to their models: every key is known, every value of its type."""

from __future__ import annotations

import json
from typing import Any

from vlm_edge.facts import FACTS


def known(stage: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts as a record holds them."""
    written: dict[str, Any] = json.loads(json.dumps(facts, allow_nan=False))
    assert FACTS[stage].model_validate(written).model_dump(by_alias=True, exclude_unset=True) == written
    return facts
