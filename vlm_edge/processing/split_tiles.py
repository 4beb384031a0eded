"""Idefics3's and SmolVLM's tiles: an image cut into squares, and all of it in one more.

Laurençon et al. 2024, arXiv:2408.12637, section 3.2.1, as transformers' Idefics3ImageProcessor does it.
"""

from __future__ import annotations

import math

from vlm_edge.processing.images import Pixels, resized
from vlm_edge.processing.manifest import ImageProcessing, Prompt, SplitTiles
from vlm_edge.processing.picture import Picture, tile_pixels

MAX_SIDE = 4096
"""No image is scaled to more than this (transformers' MAX_IMAGE_SIZE)."""


def split_picture(image: Pixels, spec: ImageProcessing, tiles: SplitTiles, prompt: Prompt) -> Picture:
    """The tiles row by row, then the whole image; or the whole image alone, when it fits one tile."""
    size = (image.shape[0], image.shape[1])
    side = spec.height
    image = resized(image, _longest_edge(size, tiles.longest_edge), spec.resample)
    if tiles.split:
        image = resized(image, _whole_tiles(image.shape[0], image.shape[1], side), spec.resample)
    rows, columns = image.shape[0] // side, image.shape[1] // side
    cut = []
    if tiles.split and rows * columns > 1:
        cut = [image[r * side : (r + 1) * side, c * side : (c + 1) * side] for r in range(rows) for c in range(columns)]
    whole = resized(image, (side, side), spec.resample)
    grid = (rows, columns) if cut else (0, 0)
    return Picture(tile_pixels([*cut, whole], spec), _text(grid, tiles, prompt), size, grid)


def _text(grid: tuple[int, int], tiles: SplitTiles, prompt: Prompt) -> str:
    """The image's text in a prompt: every tile's place and tokens."""
    tokens = prompt.image_token * prompt.image_tokens
    if grid == (0, 0):
        return tiles.single_text.replace("{image}", tokens)
    text = ""
    for row in range(1, grid[0] + 1):
        for column in range(1, grid[1] + 1):
            text += tiles.tile_text.replace("{row}", str(row)).replace("{column}", str(column))
        text += tiles.row_end
    return (text + tiles.whole_text).replace("{image}", tokens)


def _longest_edge(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) with the longer side at ``longest``, the other even, neither above :data:`MAX_SIDE`."""
    height, width = size
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    aspect = width / height
    if width >= height and width > MAX_SIDE:
        height, width = int(MAX_SIDE / aspect), MAX_SIDE
    elif height > width and height > MAX_SIDE:
        height, width = MAX_SIDE, int(MAX_SIDE * aspect)
    return max(height, 1), max(width, 1)


def _whole_tiles(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) as multiples of ``side``, the longer side first."""
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / aspect) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * aspect) / side) * side
    return height, width
