"""The difference of a metric between two runs: a number, its interval and the way it was computed, or a reason."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from vlm_edge.core.measurement import Measurement

How = Literal["paired", "same baseline", "unpaired", "exact"]


class Difference(BaseModel):
    """``measured`` is the later run against the earlier: a drop in points, or a ratio (later over earlier).

    ``how``: ``paired`` sample by sample; through speed-ups over the ``same baseline`` engine; ``unpaired``, from the
    two intervals as if independent; ``exact`` for counts. ``reason`` says why there is no number, or no better one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured: Measurement | None = None
    how: How | None = None
    reason: str | None = None
