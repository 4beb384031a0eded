"""One image as a vision encoder takes it, and the text that stands for it in a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Inputs = dict[str, NDArray[np.float32] | NDArray[np.int64]]


@dataclass(frozen=True)
class Picture:
    """Inputs of the vision encoder, ``{input: array}`` with the image's tiles along the first axis; the text with one
    image token for every embedding that the image becomes; its size (height, width) in pixels; and the rows and
    columns of tiles (or of groups of patches) that it was cut into. ``order``: where the picture's rows belong, when
    they are not in the order of the prompt."""

    inputs: Inputs
    text: str
    size: tuple[int, int]
    grid: tuple[int, int] = (0, 0)
    order: NDArray[np.int64] | None = None

    @property
    def tiles(self) -> int:
        """Number of rows of a batch that the picture takes."""
        return len(self.inputs["pixel_values"])
