"""Qwen2-VL's patches: an image at its own size, and the positions of its tokens.

Wang et al. 2024, arXiv:2409.12191, and Bai et al. 2025, arXiv:2502.13923 (windows), as transformers'
Qwen2VLImageProcessor, vision_utils and Qwen2VLModel.get_rope_index do it, for images without time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import Pixels, preprocess, resized
from vlm_edge.processing.manifest import ImageProcessing, PatchGrid, Prompt
from vlm_edge.processing.picture import Picture

MAX_ASPECT = 200
"""Largest ratio of an image's sides (transformers' smart_resize)."""


def fitting_size(size: tuple[int, int], grid: PatchGrid) -> tuple[int, int]:
    """The nearest (height, width) that whole groups of patches cover, with an area within the bounds.

    Raises:
        VlmEdgeError: one side is more than :data:`MAX_ASPECT` times the other.
    """
    height, width = size
    if max(size) > MAX_ASPECT * min(size):
        raise VlmEdgeError(
            f"the image is {width} x {height} pixels; the model takes none whose sides differ by more than "
            f"{MAX_ASPECT} times",
            "cut it into several",
        )
    factor = grid.patch * grid.merge
    rounded = round(height / factor) * factor, round(width / factor) * factor
    if rounded[0] * rounded[1] > grid.max_pixels:
        scale = math.sqrt(height * width / grid.max_pixels)
        return max(factor, math.floor(height / scale / factor) * factor), max(
            factor, math.floor(width / scale / factor) * factor
        )
    if rounded[0] * rounded[1] < grid.min_pixels:
        scale = math.sqrt(grid.min_pixels / (height * width))
        return math.ceil(height * scale / factor) * factor, math.ceil(width * scale / factor) * factor
    return rounded


def patch_picture(image: Pixels, spec: ImageProcessing, grid: PatchGrid, prompt: Prompt) -> Picture:
    """``pixel_values`` (groups, patches of a group, values), ``patch_positions`` (groups, patches of a group, 2): the
    row and column of each, and with windows ``window_ids`` (groups,), all window by window."""
    size = fitting_size((image.shape[0], image.shape[1]), grid)
    tile = spec.model_copy(update={"height": size[0], "width": size[1], "tiles": None})
    pixels = preprocess([resized(image, size, spec.resample)], tile)[0]
    rows, columns = size[0] // (grid.patch * grid.merge), size[1] // (grid.patch * grid.merge)
    blocks = pixels.reshape(3, rows, grid.merge, grid.patch, columns, grid.merge, grid.patch)
    blocks = blocks.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    blocks = np.repeat(blocks, grid.frames, axis=5)
    groups, patches = rows * columns, grid.merge**2
    places = np.moveaxis(np.indices((rows * grid.merge, columns * grid.merge)), 0, -1)
    places = places.reshape(rows, grid.merge, columns, grid.merge, 2).transpose(0, 2, 1, 3, 4)
    inputs = {
        "pixel_values": blocks.reshape(groups, patches, -1),
        "patch_positions": places.reshape(groups, patches, 2).astype(np.int64),
    }
    order = None
    if grid.window is not None:
        row, column = np.divmod(np.arange(groups), columns)
        window = row // grid.window * (columns // grid.window + 1) + column // grid.window
        by_window = np.argsort(window, kind="stable")
        inputs = {name: values[by_window] for name, values in inputs.items()}
        inputs["window_ids"] = window[by_window].astype(np.int64)
        order = np.argsort(by_window).astype(np.int64)
    return Picture(inputs, prompt.image_token * groups, (image.shape[0], image.shape[1]), (rows, columns), order)


def grid_positions(row: Sequence[int], image_token_id: int, grids: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """(3, tokens): time, height and width of every token of a prompt.

    A text token's three are equal and count on; an image's tokens share their time and have the height and width of
    their place in its grid, all from where the text before ends; the text goes on behind the largest.
    """
    parts: list[NDArray[np.int64]] = []
    left, token, position = list(grids), 0, 0
    while token < len(row):
        if row[token] == image_token_id and left:
            rows, columns = left.pop(0)
            place = np.indices((rows, columns)).reshape(2, -1)
            parts.append(position + np.concatenate([np.zeros_like(place[:1]), place]))
            token, position = token + rows * columns, position + max(rows, columns)
        else:
            parts.append(np.full((3, 1), position))
            token, position = token + 1, position + 1
    return np.concatenate(parts, axis=1).astype(np.int64)
