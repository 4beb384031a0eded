"""Types for what is read from outside: digests, times, and JSON of which every number is finite."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field


def _timestamp(text: str) -> str:
    try:
        zone = datetime.fromisoformat(text).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise ValueError(f"{text[:40]!r} is no ISO 8601 time with its zone, such as 2026-11-30T12:00:00+00:00")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number in it is not finite")
    if isinstance(value, dict):
        for each in value.values():
            _finite(each)
    elif isinstance(value, list):
        for each in value:
            _finite(each)
    return value


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A sha256 in hexadecimal: what names a folder of the store, and can name nothing else."""

Timestamp = Annotated[str, AfterValidator(_timestamp)]
"""ISO 8601 with a zone."""

JsonObject = Annotated[dict[str, Any], AfterValidator(_finite)]
"""A mapping of JSON values without NaN and infinity, which JSON has no words for."""
