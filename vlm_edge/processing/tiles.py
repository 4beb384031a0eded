"""Images cut into tiles, as transformers' image processors of three families do it.

- Idefics3 and SmolVLM: squares, and all of the image in one more. Laurençon et al. 2024, arXiv:2408.12637, section
  3.2.1 (Idefics3ImageProcessor).
- LLaVA-NeXT: the best of a few resolutions, and its embeddings without the padding's. Liu et al. 2024, "LLaVA-NeXT:
  Improved reasoning, OCR, and world knowledge" (LlavaNextImageProcessor, LlavaNextModel.pack_image_features).
- Mllama: the canvas of tiles that fits best, in the corner of a fixed number of tiles. Grattafiori et al. 2024,
  arXiv:2407.21783, section 7.2 (MllamaImageProcessor).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.processing.images import Pixels, preprocess, resized
from vlm_edge.processing.manifest import AnyResTiles, CanvasTiles, ImageProcessing, Prompt, SplitTiles
from vlm_edge.processing.picture import Inputs, Picture

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
    return Picture({"pixel_values": preprocess([*cut, whole], spec)}, _text(grid, tiles, prompt), size, grid)


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
    return Picture({"pixel_values": preprocess([whole, *cut], spec)}, prompt.image_token * tokens, size, grid)


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
    pixels[0, : len(cut)] = preprocess(list(cut), spec)
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
