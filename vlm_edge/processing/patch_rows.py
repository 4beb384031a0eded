"""Images near their own aspect as lists of patches, as transformers' Siglip2ImageProcessor and ViltImageProcessor do.

Dehghani et al. 2023, arXiv:2307.06304 (NaViT), and Tschannen et al. 2025, arXiv:2502.14786, section 2.4.2 (NaFlex):
as many patches as fit; Kim et al. 2021, arXiv:2102.03334, section 4.2 (ViLT): a bounded size, and a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.processing.images import Pixels, preprocess, resize_target, resized
from vlm_edge.processing.manifest import ImageProcessing, PatchRows
from vlm_edge.processing.picture import Inputs, Picture

LEAST_SCALE, MOST_SCALE, SCALE_STEP = 1e-6, 100.0, 1e-5
"""Between which scales, and how finely, Siglip2ImageProcessor looks for the size that fills ``max_patches``."""


def filling_size(size: tuple[int, int], patch: int, most: int) -> tuple[int, int]:
    """(height, width) in whole patches, near the aspect of ``size``, with as many patches as ``most`` allows."""

    def scaled(scale: float) -> tuple[int, int]:
        height, width = (max(patch, math.ceil(length * scale / patch) * patch) for length in size)
        return height, width

    low, high = LEAST_SCALE, MOST_SCALE
    while high - low >= SCALE_STEP:
        middle = (low + high) / 2
        height, width = scaled(middle)
        if (height / patch) * (width / patch) <= most:
            low = middle
        else:
            high = middle
    return scaled(low)


def most_patches(spec: ImageProcessing, rows: PatchRows) -> int:
    """The longest list that an image can become."""
    if rows.max_patches is not None:
        return rows.max_patches
    unit, longest = spec.multiple_of or rows.patch, spec.longest_edge or max(spec.height, spec.width)
    shortest = spec.shortest_edge or min(spec.height, spec.width)
    return (shortest // unit) * (longest // unit) * (unit // rows.patch) ** 2


def row_picture(image: Pixels, spec: ImageProcessing, rows: PatchRows) -> Picture:
    """``pixel_values`` (1, patches, values): row by row, the values of a patch as (y, x, channel);
    ``pixel_attention_mask`` (1, patches): 0 where the list is filled up; ``spatial_shapes`` (1, 2): rows and columns of
    the image's patches."""
    size, patch = (image.shape[0], image.shape[1]), rows.patch
    height, width = (
        resize_target(*size, spec) if rows.max_patches is None else filling_size(size, patch, rows.max_patches)
    )
    whole = spec.model_copy(update={"height": height, "width": width, "tiles": None})
    pixels = preprocess([resized(image, (height, width), spec.resample)], whole)[0]
    patches, grid = cut_patches(pixels, patch), (height // patch, width // patch)
    inputs: Inputs = {
        "pixel_values": patches[None],
        "pixel_attention_mask": np.ones((1, len(patches)), np.int64),
        "spatial_shapes": np.array([grid], np.int64),
    }
    return Picture(_filled(inputs, rows.max_patches or len(patches)), "", size, grid)


def cut_patches(pixels: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """(3, height, width) -> (patches, patch x patch x 3), row by row."""
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    cut = pixels.reshape(3, rows, patch, columns, patch).transpose(1, 3, 2, 4, 0)
    return cut.reshape(rows * columns, 3 * patch * patch)


def stacked(pictures: Sequence[Picture]) -> Inputs:
    """Inputs of several pictures in one batch, padded to the longest list of patches."""
    longest = max(picture.inputs["pixel_values"].shape[1] for picture in pictures)
    filled = [_filled(picture.inputs, longest) for picture in pictures]
    return {name: np.concatenate([inputs[name] for inputs in filled]) for name in filled[0]}


def _filled(inputs: Inputs, length: int) -> Inputs:
    """The lists of patches and their masks with zeros behind, up to ``length``."""
    images, given, values = inputs["pixel_values"].shape
    if given == length:
        return inputs
    pixels, mask = np.zeros((images, length, values), np.float32), np.zeros((images, length), np.int64)
    pixels[:, :given], mask[:, :given] = inputs["pixel_values"], inputs["pixel_attention_mask"]
    return {**inputs, "pixel_values": pixels, "pixel_attention_mask": mask}
