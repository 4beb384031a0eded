"""What an evaluation keeps: the outcome of every sample, so that two engines can be compared pair by pair."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator


class Skipped(BaseModel):
    """A sample that was left out because its image cannot be read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    image: str
    reason: str


class Outcomes(BaseModel):
    """One row a sample, in the data set's order.

    ``groups`` names each sample's image: samples of one image are resampled together. ``scores`` are in 0..1.
    ``engine`` and ``data`` are the digests of the engine folder and of the split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Literal["vqa_accuracy", "top1"]
    engine: str
    data: str
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    scores: tuple[float, ...]
    predictions: tuple[str, ...]
    slices: tuple[tuple[str, ...], ...]
    skipped: tuple[Skipped, ...] = ()

    @model_validator(mode="after")
    def _same_length(self) -> Outcomes:
        columns = ("groups", "scores", "predictions", "slices")
        if any(len(getattr(self, name)) != len(self.ids) for name in columns):
            raise ValueError(f"ids, {', '.join(columns)} must have one entry for each sample")
        return self

    def to_json(self) -> dict[str, Any]:
        """JSON values, which :meth:`from_json` reads back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcomes:
        return cls.model_validate(values)
