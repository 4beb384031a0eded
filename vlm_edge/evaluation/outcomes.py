"""Outcomes of an evaluation, one a sample, so that two engines can be compared pair by pair."""

from __future__ import annotations

import base64
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vlm_edge.data.kinds import TaskKind


class Matrix(BaseModel):
    """A float32 matrix (rows, columns); ``data`` is base64 of its little-endian bytes, row by row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    columns: int
    data: str

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.data) != (4 * self.rows * self.columns + 2) // 3 * 4:
            raise ValueError(f"data must hold {self.rows} x {self.columns} float32 values")
        return self

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """Values (rows, columns), rounded to float32 unless they are float32 already."""
        array = np.ascontiguousarray(values, "<f4")
        rows, columns = array.shape
        return cls(rows=rows, columns=columns, data=base64.b64encode(array.tobytes()).decode("ascii"))

    def array(self) -> NDArray[np.float32]:
        """(rows, columns), bit for bit what :meth:`of` was given."""
        return np.frombuffer(base64.b64decode(self.data), "<f4").reshape(self.rows, self.columns)


class Embeddings(BaseModel):
    """A dual encoder's embeddings of the samples, every image and every text once.

    ``image_rows`` has one row of ``image`` for each sample; ``text_rows`` the rows of ``text`` that belong to it: its
    class's (classification) or its captions' (retrieval).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Matrix
    text: Matrix
    image_rows: tuple[int, ...]
    text_rows: tuple[tuple[int, ...], ...]


class Skipped(BaseModel):
    """A sample that was left out because its image cannot be read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    image: str
    reason: str


class Outcomes(BaseModel):
    """One row a sample, in the data set's order.

    ``scores`` maps a metric to its column; the first is ``accuracy``, the task's primary metric. ``groups`` names what
    a sample shares its luck with (its image): samples of one group are resampled together. ``expected`` is given where
    a metric needs the right answers beside the predictions, ``tokens`` where the engine generates them, ``embeddings``
    for a dual encoder. ``notes`` are sentences on what was left out of the inputs. ``engine`` and ``data`` are the
    digests of the engine folder and of the split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: TaskKind
    engine: str
    data: str
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    scores: dict[str, tuple[float, ...]] = Field(min_length=1)
    predictions: tuple[str, ...]
    slices: tuple[tuple[str, ...], ...]
    expected: tuple[str, ...] | None = None
    tokens: tuple[tuple[int, ...], ...] | None = None
    embeddings: Embeddings | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Outcomes:
        columns: dict[str, Any] = {
            **{name: getattr(self, name) for name in ("groups", "predictions", "slices", "expected", "tokens")},
            **{f"scores.{name}": column for name, column in self.scores.items()},
        }
        if self.embeddings is not None:
            columns |= {"image_rows": self.embeddings.image_rows, "text_rows": self.embeddings.text_rows}
        uneven = [name for name, column in columns.items() if column is not None and len(column) != len(self.ids)]
        if uneven:
            raise ValueError(f"{', '.join(uneven)} must have one entry for each sample")
        if next(iter(self.scores)) != "accuracy":
            raise ValueError("the first of scores must be accuracy, the primary metric")
        return self

    def to_json(self) -> dict[str, Any]:
        """JSON values; what is not given is left out."""
        return self.model_dump(mode="json", exclude_none=True)
