"""Image tokens as a grid: how a teacher's many tokens become targets for a student's few."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_edge.errors import VlmEdgeError


def token_grid(tokens: int, height: int, width: int) -> tuple[int, int, bool]:
    """(rows, columns, whether a class token comes first) of a tower's tokens for images of ``height`` x ``width``.

    Raises:
        VlmEdgeError: neither ``tokens`` nor ``tokens - 1`` is a grid of the images' aspect.
    """
    for count in (tokens, tokens - 1):
        rows = round((count * height / width) ** 0.5)
        if rows > 0 and count % rows == 0 and rows * width == (count // rows) * height:
            return rows, count // rows, count != tokens
    raise VlmEdgeError(
        f"the teacher's {tokens} image tokens are no grid over images of {height}x{width}, so a student of another "
        "grid can't learn them",
        "distil from a teacher whose vision tower keeps one token for each patch",
    )


def pool_tokens(features: Tensor, image: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """A tower's tokens (images, tokens, hidden) in the student's layout: (images, 1 + rows x columns, hidden).

    Token 0 is the class token, or the mean where there is none; the cells are means over the area that each covers
    (torch's adaptive average pooling; cells smaller than a patch repeat it). ``image`` is (height, width).
    """
    rows, columns, has_class = token_grid(features.shape[1], *image)
    patches = features[:, 1:] if has_class else features
    first = features[:, :1] if has_class else features.mean(dim=1, keepdim=True)
    if (rows, columns) == grid:
        return torch.cat([first, patches], dim=1)
    plane = patches.transpose(1, 2).reshape(len(features), -1, rows, columns)
    cells = F.adaptive_avg_pool2d(plane, grid).flatten(2).transpose(1, 2)
    return torch.cat([first, cells], dim=1)
