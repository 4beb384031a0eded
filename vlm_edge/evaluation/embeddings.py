"""Embeddings in an outcome: exact, and small enough to keep as JSON."""

from __future__ import annotations

import base64
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, model_validator


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
