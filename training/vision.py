"""What both vision towers are taught with: labelled images, labels of patches, linear heads and position codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from training.easyvqa import Split, infer_labels
from training.render import COLOR_NAMES, IMAGE_SIZE, SHAPES, coverage_from_pixels, render_batch

IMAGE_MEAN, IMAGE_STD = 0.95, 0.25
IGNORE = -100
MIN_FOREGROUND, MAX_BACKGROUND = 0.2, 0.02


@dataclass(frozen=True)
class LabelledImages:
    """images: uint8 [n, 64, 64, 3]; coverage: float32 [n, 64, 64]; shapes, colors: int64 [n], all known."""

    images: NDArray[np.uint8]
    coverage: NDArray[np.float32]
    shapes: NDArray[np.int64]
    colors: NDArray[np.int64]


def labelled_images(split: Split, rendered: int, seed: int) -> LabelledImages:
    """The images of `split` whose shape and colour its questions tell, followed by `rendered` rendered ones."""
    shapes, colors = infer_labels(split)
    known = (shapes != IGNORE) & (colors != IGNORE)
    real = split.images[known]
    extra = render_batch(rendered, seed)
    return LabelledImages(
        np.concatenate([real, extra.images]),
        np.concatenate([coverage_from_pixels(real), extra.coverage]),
        np.concatenate([shapes[known], extra.shapes]),
        np.concatenate([colors[known], extra.colors]),
    )


def patch_coverage(coverage: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """Mean coverage of each patch: float32 [n, 64, 64] -> float32 [n, 64 / patch, 64 / patch]."""
    grid = IMAGE_SIZE // patch
    mean: NDArray[np.float32] = coverage.reshape(-1, grid, patch, grid, patch).mean(axis=(2, 4))
    return mean


def patch_labels(data: LabelledImages, patch: int) -> torch.Tensor:
    """What each patch shows, int64 [n, patches]: 0 background, 1.. the shape, IGNORE where it is hardly covered."""
    covered = patch_coverage(data.coverage, patch)
    labels = np.where(covered > MIN_FOREGROUND, data.shapes[:, None, None] + 1, IGNORE)
    labels[covered < MAX_BACKGROUND] = 0
    return torch.from_numpy(labels.reshape(len(labels), -1))


class LabelHeads(nn.Module):
    """Linear heads that teach a vision tower and are thrown away: shape and colour, from CLS and from each patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = nn.Linear(width, len(SHAPES))
        self.color = nn.Linear(width, len(COLOR_NAMES))
        self.patch_shape = nn.Linear(width, len(SHAPES) + 1)
        self.patch_color = nn.Linear(width, len(COLOR_NAMES) + 1)

    def losses(
        self, hidden: torch.Tensor, shapes: torch.Tensor, colors: torch.Tensor, patch_shape: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Cross-entropies for hidden [batch, 1 + t, width] (CLS first), labels [batch] and patch labels [batch, t]."""
        patch_color = torch.where(patch_shape > 0, colors[:, None] + 1, patch_shape)
        return {
            "shape": F.cross_entropy(self.shape(hidden[:, 0]), shapes),
            "color": F.cross_entropy(self.color(hidden[:, 0]), colors),
            "patch_shape": F.cross_entropy(self.patch_shape(hidden[:, 1:]).flatten(0, 1), patch_shape.flatten()),
            "patch_color": F.cross_entropy(self.patch_color(hidden[:, 1:]).flatten(0, 1), patch_color.flatten()),
        }


def sine_positions(grid: int, width: int) -> torch.Tensor:
    """2-D sine-cosine position codes, float32 [grid * grid, width]; a start from which neighbours are told apart."""
    frequencies = 1.0 / (100.0 ** (torch.arange(width // 4) / (width // 4)))
    angles = torch.arange(grid)[:, None] * frequencies[None, :]
    codes = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = codes[:, None, :].expand(grid, grid, -1)
    columns = codes[None, :, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)
