"""Random shifts and flips of a batch of images; a task's recipe says which of them keep its answers right."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def augment_images(pixel_values: Tensor, rng: np.random.Generator, *, shift: float, horizontal_flip: bool) -> Tensor:
    """Each image moved by up to ``shift`` of its sides (the edge pixels repeated) and mirrored half of the time.

    (images, channels, height, width) -> the same shape and dtype. The draws come from ``rng`` alone.
    """
    images, _, height, width = pixel_values.shape
    down, right = round(shift * height), round(shift * width)
    tops = rng.integers(0, 2 * down + 1, size=images)
    lefts = rng.integers(0, 2 * right + 1, size=images)
    mirrored = rng.random(images) < 0.5 if horizontal_flip else np.zeros(images, dtype=bool)
    padded = F.pad(pixel_values, (right, right, down, down), mode="replicate")
    moved = torch.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, top, left in zip(padded, tops.tolist(), lefts.tolist(), strict=True)
        ]
    )
    rows = torch.from_numpy(mirrored).to(moved.device)
    return torch.where(rows[:, None, None, None], moved.flip(-1), moved)
