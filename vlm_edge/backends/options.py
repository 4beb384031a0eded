"""An engine's options as they stand in a manifest: each engine has a closed list of them, and bounds for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vlm_edge.checked import first_fault
from vlm_edge.errors import VlmEdgeError

Option = str | int | float | bool


class EngineOptions(BaseModel):
    """Unknown options are refused: some of an engine's own write files, or load code."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Options = TypeVar("Options", bound=EngineOptions)


def read_options(engine: str, kind: type[Options], given: Mapping[str, Option]) -> Options:
    """The options, validated.

    Raises:
        VlmEdgeError: one is unknown or out of bounds.
    """
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        raise VlmEdgeError(
            f"{engine} option {first_fault(error, kind)}",
            f"options: {', '.join(kind.model_fields)}" if kind.model_fields else f"{engine} takes none",
        ) from error
