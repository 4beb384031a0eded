"""LLaVA-NeXT's tiles: an image at the best of a few resolutions, and its embeddings without the padding's.

Liu et al. 2024, "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", as transformers' LlavaNextImageProcessor
and LlavaNextModel.pack_image_features do it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.processing.images import Pixels, resized
from vlm_edge.processing.manifest import AnyResTiles, ImageProcessing, Prompt
from vlm_edge.processing.picture import Picture, tile_pixels


def best_resolution(size: tuple[int, int], resolutions: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The resolution (height, width) that keeps most of an image's pixels, and of those the one with least padding."""
    height, width = size

    def fit(resolution: tuple[int, int]) -> tuple[int, int]:
        scale = min(resolution[1] / width, resolution[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(resolutions, key=fit)


def anyres_picture(image: Pixels, spec: ImageProcessing, tiles: AnyResTiles, prompt: Prompt) -> Picture:
    """The whole image as one tile, then the tiles of its best resolution, row by row."""
    size = (image.shape[0], image.shape[1])
    target = best_resolution(size, tiles.resolutions)
    padded = _fitted(image, target, spec.resample)
    side = spec.height
    cut = [padded[y : y + side, x : x + side] for y in range(0, target[0], side) for x in range(0, target[1], side)]
    whole = resized(image, (spec.height, spec.width), spec.resample)
    grid = (target[0] // side, target[1] // side)
    rows, columns = (part.stop - part.start for part in _unpadded(size, (tiles.grid * grid[0], tiles.grid * grid[1])))
    tokens = prompt.image_tokens + rows * (columns + 1)
    return Picture(tile_pixels([whole, *cut], spec), prompt.image_token * tokens, size, grid)


def anyres_embeds(
    embeds: NDArray[np.float32], newline: NDArray[np.float32], picture: Picture, tiles: AnyResTiles
) -> NDArray[np.float32]:
    """(tiles, tokens, width) -> (image_tokens, width): the whole image's, then the tiles' put together row by row
    without the padding, each row followed by ``newline`` (width,)."""
    rows, columns = picture.grid
    side, width = tiles.grid, embeds.shape[-1]
    plane = embeds[1:].reshape(rows, columns, side, side, width).transpose(0, 2, 1, 3, 4)
    plane = plane.reshape(rows * side, columns * side, width)
    plane = plane[_unpadded(picture.size, plane.shape[:2])]
    ends = np.broadcast_to(newline, (plane.shape[0], 1, width))
    lines = np.concatenate([plane, ends], axis=1).reshape(-1, width)
    return np.concatenate([embeds[0], lines])


def _fitted(image: Pixels, target: tuple[int, int], resample: int) -> Pixels:
    """The image scaled into ``target`` (height, width) and set in the middle of black; odd rests go below and right."""
    height, width = image.shape[:2]
    if target[1] / width < target[0] / height:
        size = (min(math.ceil(height * (target[1] / width)), target[0]), target[1])
    else:
        size = (target[0], min(math.ceil(width * (target[0] / height)), target[1]))
    canvas = np.zeros((*target, 3), np.uint8)
    top, left = (target[0] - size[0]) // 2, (target[1] - size[1]) // 2
    canvas[top : top + size[0], left : left + size[1]] = resized(image, size, resample)
    return canvas


def _unpadded(size: tuple[int, int], plane: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of ``plane`` (in patches) that show an image of ``size``, not its padding."""
    (height, width), (rows, columns) = size, plane[:2]
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return slice(padding, rows - padding), slice(0, columns)
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return slice(0, rows), slice(padding, columns - padding)
