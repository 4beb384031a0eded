"""Mllama's tiles: an image on the canvas of tiles that fits it best, in the corner of a fixed number of tiles.

Grattafiori et al. 2024, arXiv:2407.21783, section 7.2, as transformers' MllamaImageProcessor does it.
"""

from __future__ import annotations

import math

import numpy as np

from vlm_edge.processing.images import Pixels, resized
from vlm_edge.processing.manifest import CanvasTiles, ImageProcessing, Prompt
from vlm_edge.processing.picture import Inputs, Picture, tile_pixels


def arrangements(most: int) -> list[tuple[int, int]]:
    """Every (rows, columns) of at most ``most`` tiles; an arrangement's place counts from 1 in ``aspect_ratio_ids``."""
    return [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]


def best_arrangement(size: tuple[int, int], side: int, most: int) -> tuple[int, int]:
    """The (rows, columns) that enlarges an image least, or else shrinks it least; of several the smallest."""
    possible = arrangements(most)
    scales = [min(rows * side / size[0], columns * side / size[1]) for rows, columns in possible]
    enlarging = [scale for scale in scales if scale >= 1]
    wanted = min(enlarging) if enlarging else max(scales)
    fitting = [each for each, scale in zip(possible, scales, strict=True) if scale == wanted]
    return min(fitting, key=lambda each: each[0] * each[1])


def canvas_picture(image: Pixels, spec: ImageProcessing, tiles: CanvasTiles, prompt: Prompt) -> Picture:
    """``pixel_values`` (1, max_tiles, 3, side, side), ``aspect_ratio_ids`` (1,) and ``aspect_ratio_mask`` (1,
    max_tiles): 1 for the tiles that show the image, which come first, row by row."""
    size, side = (image.shape[0], image.shape[1]), spec.height
    rows, columns = best_arrangement(size, side, tiles.max_tiles)
    canvas = np.zeros((rows * side, columns * side, 3), np.uint8)
    fitted = _fitting_size(size, canvas.shape[:2], side)
    canvas[: fitted[0], : fitted[1]] = resized(image, fitted, spec.resample)
    cut = canvas.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
    pixels = np.zeros((1, tiles.max_tiles, 3, side, side), np.float32)
    pixels[0, : len(cut)] = tile_pixels(list(cut), spec)["pixel_values"]
    inputs: Inputs = {
        "pixel_values": pixels,
        "aspect_ratio_ids": np.array([arrangements(tiles.max_tiles).index((rows, columns)) + 1], np.int64),
        "aspect_ratio_mask": (np.arange(tiles.max_tiles) < rows * columns).astype(np.int64)[None],
    }
    return Picture(inputs, prompt.image_token, size, (rows, columns))


def _fitting_size(size: tuple[int, int], canvas: tuple[int, ...], side: int) -> tuple[int, int]:
    """(height, width) with the aspect of ``size``, at least a tile long where the canvas allows, and within it."""
    height, width = (min(max(length, side), bound) for length, bound in zip(size, canvas, strict=True))
    down, across = height / size[0], width / size[1]
    if across < down:
        return min(math.floor(size[0] * across) or 1, height), width
    return height, min(math.floor(size[1] * down) or 1, width)
