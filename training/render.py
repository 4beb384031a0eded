"""Renders images of the same kind as easy-VQA: one flat shape on a pale, plain background.

easy-VQA (Victor Zhou, MIT licence) holds 64x64 images with one circle, rectangle or upward triangle in one of eight
pure colours.  Its pixels show that each shape was drawn at twice the size and scaled down with a bilinear filter; this
module does the same, so that training can use as many images as it likes.  Rendered images are never used for testing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SHAPES: tuple[str, ...] = ("circle", "rectangle", "triangle")
COLORS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)

IMAGE_SIZE = 64
DRAW_SCALE = 2
MIN_DRAW_SIDE = 16
MAX_DRAW_SIDE = 64
MIN_BACKGROUND = 230
TRIANGLE_HEIGHT = 3**0.5 / 2


@dataclass(frozen=True)
class RenderedBatch:
    """Images with their labels.

    images: uint8 [n, 64, 64, 3]; coverage: float32 [n, 64, 64], the part of each pixel that the shape covers;
    shapes and colors: int64 [n], indices into SHAPES and COLOR_NAMES.
    """

    images: NDArray[np.uint8]
    coverage: NDArray[np.float32]
    shapes: NDArray[np.int64]
    colors: NDArray[np.int64]


def draw_coverage(shape: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draws one shape of random size at a random place; returns its pixel coverage in 0..1, float32 [64, 64]."""
    canvas = IMAGE_SIZE * DRAW_SCALE
    width, height = (int(side) for side in rng.integers(MIN_DRAW_SIDE, MAX_DRAW_SIDE + 1, size=2))
    if shape == "circle":
        height = width
    elif shape == "triangle":
        height = round(width * TRIANGLE_HEIGHT)
    left = int(rng.integers(0, canvas - width))
    top = int(rng.integers(0, canvas - height))
    right, bottom = left + width, top + height
    mask = Image.new("L", (canvas, canvas), 0)
    draw = ImageDraw.Draw(mask)
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=255)
    elif shape == "rectangle":
        draw.rectangle((left, top, right, bottom), fill=255)
    elif shape == "triangle":
        draw.polygon([(left, bottom), (right, bottom), (left + width / 2, top)], fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    small = mask.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32) / 255.0


def render_image(shape: str, color: str, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Renders one image, uint8 [64, 64, 3], and its coverage, float32 [64, 64]."""
    coverage = draw_coverage(shape, rng)
    background = rng.integers(MIN_BACKGROUND, 256, size=3).astype(np.float32)
    foreground = np.asarray(COLORS[color], dtype=np.float32)
    pixels = background + coverage[:, :, None] * (foreground - background)
    return np.rint(pixels).astype(np.uint8), coverage


def render_batch(count: int, seed: int) -> RenderedBatch:
    """Renders `count` images with shapes and colours drawn evenly; the same seed gives the same images."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(0, len(SHAPES), size=count)
    colors = rng.integers(0, len(COLOR_NAMES), size=count)
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    coverage = np.empty((count, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for index in range(count):
        images[index], coverage[index] = render_image(SHAPES[shapes[index]], COLOR_NAMES[colors[index]], rng)
    return RenderedBatch(images, coverage, shapes, colors)


def coverage_from_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Estimates the coverage of real images from their flat background: uint8 [n, 64, 64, 3] -> float32 [n, 64, 64].

    The background is the median of the four corners, the shape's colour is the pixel farthest from it.
    """
    pixels = images.astype(np.float32)
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    background = np.median(corners, axis=1)[:, None, None, :]
    distance = np.abs(pixels - background).sum(axis=-1)
    coverage: NDArray[np.float32] = (distance / distance.max(axis=(1, 2), keepdims=True)).astype(np.float32)
    return coverage
