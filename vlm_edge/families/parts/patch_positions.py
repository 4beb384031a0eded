"""Position embeddings of images whose patches form any grid: a trained square table, resized to each image's own.

Resizing is bilinear, so it is separable: a patch's embedding is the sum over the table of its row's weight times its
column's weight. The weights are triangles around the patch's place in the table: a few elementwise operators for any
number of images and grids, and the table stays an ordinary weight of the graph. torch's ``interpolate`` and ONNX's
Resize take one size for a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weights = Callable[[Tensor, Tensor, int], Tensor]
"""(places, lengths, side): each patch's row or column (images, patches), of how many (images, 1), and the table's ->
(images, patches, side)."""


def resized_positions(table: Tensor, spatial_shapes: Tensor, patches: int, weights: Weights) -> Tensor:
    """table (side x side, width), spatial_shapes (images, 2): rows and columns of each image's patches -> (images,
    patches, width), row by row; patches behind an image's last get what its last row has."""
    side = round(table.shape[0] ** 0.5)
    rows, columns = spatial_shapes[:, :1], spatial_shapes[:, 1:]
    index = torch.arange(patches, device=table.device)[None, :]
    row = torch.div(index, columns, rounding_mode="floor")
    down = weights(torch.minimum(row, rows - 1), rows, side)
    across = weights(index - row * columns, columns, side)
    return (down[:, :, :, None] * across[:, :, None, :]).flatten(2) @ table


def corner_weights(place: Tensor, length: Tensor, side: int) -> Tensor:
    """Bilinear, corners on corners: ``interpolate(mode="bilinear", align_corners=True)``.

    Patch i of n looks at i (side - 1) / (n - 1), and weights fall to 0 one entry away.
    """
    step = (side - 1) / (length - 1).clamp(min=1).to(torch.float32)
    return _triangle(torch.arange(side, device=place.device) - (place * step)[:, :, None])


def antialiased_weights(place: Tensor, length: Tensor, side: int) -> Tensor:
    """Bilinear, edges on edges, smoothed where the grid is coarser than the table: ``interpolate(mode="bilinear",
    align_corners=False, antialias=True)``, which is Pillow's filter. (torch 2.13 differs from both on a CPU where there
    is one column and not as many rows as in the table; such an image is as high as all its patches.)

    Patch i of n looks at (i + 1/2) side / n; weights fall to 0 at max(1, side / n) from there, and sum to 1.
    """
    scale = side / length.to(torch.float32)
    centre = ((place + 0.5) * scale)[:, :, None]
    weights = _triangle((torch.arange(side, device=place.device) + 0.5 - centre) / scale.clamp(min=1)[:, :, None])
    return weights / weights.sum(dim=-1, keepdim=True)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)
