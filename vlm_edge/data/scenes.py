"""Scenes of 2 to 6 coloured things that cover one another, drawn by the project as images of 64x64 pixels.

Nothing here depends on the host: random numbers come from ``random.Random.random`` (whose sequence Python guarantees)
and SHAKE-128, pixels from integer arithmetic, and files are BMP, which no compression library takes part in.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

SIDE = 64
SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (214, 44, 40),
    "green": (44, 150, 52),
    "blue": (42, 82, 214),
    "yellow": (238, 206, 40),
    "purple": (150, 60, 190),
    "cyan": (60, 200, 210),
}
SIZES = {"small": (5, 6), "large": (9, 10)}
"""Radii in pixels."""
MIN_DISTANCE = 10
"""Pixels between the centres of two things."""
MIN_COVERED = 8
"""Pixels of a thing that another one in front of it hides, if it hides any."""
_TRIES = 40
_Item = TypeVar("_Item")


class Draws:
    """A sequence of random choices that the names alone decide."""

    def __init__(self, *names: object) -> None:
        self.name = "/".join(str(name) for name in names)
        self._random = random.Random(self.name)

    def below(self, count: int) -> int:
        """A whole number from 0 to ``count`` - 1."""
        return int(self._random.random() * count)

    def pick(self, items: Sequence[_Item]) -> _Item:
        return items[self.below(len(items))]

    def pair(self, count: int) -> tuple[int, int]:
        """Two different whole numbers below ``count``."""
        first, second = self.below(count), self.below(count - 1)
        return first, second + (second >= first)


@dataclass(frozen=True)
class Thing:
    """One thing of a scene. ``x``, ``y`` (the centre) and ``radius`` are pixels, from the top left corner."""

    size: str
    color: str
    shape: str
    x: int
    y: int
    radius: int
    behind: tuple[int, ...] = ()
    """Positions in the scene of the things that visibly cover a part of this one."""


Scene = tuple[Thing, ...]
"""From back to front."""


@cache
def _coverage(shape: str, radius: int) -> NDArray[np.int64]:
    """Sixteenths of each pixel that a shape covers: (2 * radius + 1, 2 * radius + 1), from 4x4 points a pixel."""
    points = np.arange(-8 * radius - 4, 8 * radius + 4, 2) + 1  # eighths of a pixel, four of them in each pixel
    u, v, r = points[None, :], points[:, None], radius
    if shape == "circle":
        inside = u * u + v * v <= 64 * r * r
    elif shape == "square":
        inside = (abs(u) <= 7 * r) & (abs(v) <= 7 * r)
    elif shape == "triangle":
        inside = (v <= 6 * r) & (14 * abs(u) <= 8 * (v + 8 * r))
    else:
        inside = ((abs(u) <= 3 * r) & (abs(v) <= 8 * r)) | ((abs(v) <= 3 * r) & (abs(u) <= 8 * r))
    width = 2 * radius + 1
    counts: NDArray[np.int64] = inside.reshape(width, 4, width, 4).sum(axis=(1, 3), dtype=np.int64)
    return counts


@cache
def _mask_at_corner(shape: str, radius: int) -> int:
    """The pixels at least half covered, as bits: row by row, ``SIDE`` bits a row."""
    rows = np.zeros((2 * radius + 1, SIDE), dtype=np.uint8)
    rows[:, : 2 * radius + 1] = _coverage(shape, radius) >= 8
    return int.from_bytes(np.packbits(rows.ravel(), bitorder="little").tobytes(), "little")


def mask_of(thing: Thing) -> int:
    """The pixels of a thing, hidden ones too, as bits: pixel (x, y) is bit ``y * SIDE + x``."""
    corner = (thing.y - thing.radius) * SIDE + thing.x - thing.radius
    return _mask_at_corner(thing.shape, thing.radius) << corner


def draw_scene(draws: Draws) -> Scene:
    """2 to 6 things: at least half of each is seen, and a thing that covers another hides 8 pixels of it or more."""
    while True:
        count = 2 + draws.below(5)
        layout = _Layout()
        for _ in range(_TRIES):
            layout.try_to_add(_draw_thing(draws, layout.things))
            if len(layout.things) == count:
                return layout.scene()


def _draw_thing(draws: Draws, others: Sequence[Thing]) -> Thing:
    """A thing anywhere, or near another one; two times in five of another one's colour or shape."""
    size = draws.pick(tuple(SIZES))
    radius = draws.pick(SIZES[size])
    color = draws.pick(others).color if others and draws.below(5) < 2 else draws.pick(tuple(COLORS))
    shape = draws.pick(others).shape if others and draws.below(5) < 2 else draws.pick(SHAPES)
    low, high = radius, SIDE - 1 - radius
    x, y = (low + draws.below(high - low + 1) for _ in range(2))
    if others and draws.below(2):
        other = draws.pick(others)
        reach = radius + other.radius
        x, y = (centre + draws.below(2 * reach + 1) - reach for centre in (other.x, other.y))
        x, y = min(max(x, low), high), min(max(y, low), high)
    return Thing(size, color, shape, x, y, radius)


class _Layout:
    """Things placed from back to front, with what is seen of each."""

    def __init__(self) -> None:
        self.things: list[Thing] = []
        self._masks: list[int] = []
        self._seen: list[int] = []
        self._behind: list[tuple[int, int]] = []

    def try_to_add(self, thing: Thing) -> None:
        """Put a thing in front of all others, unless it is too near to one or hides too much or too little of it."""
        mask = mask_of(thing)
        near = MIN_DISTANCE**2
        if any((thing.x - other.x) ** 2 + (thing.y - other.y) ** 2 < near for other in self.things):
            return
        hidden = [(seen & mask).bit_count() for seen in self._seen]
        seen = [before & ~mask for before in self._seen]
        if any(0 < count < MIN_COVERED for count in hidden):
            return
        if any(2 * part.bit_count() < whole.bit_count() for part, whole in zip(seen, self._masks, strict=True)):
            return
        if any((self._masks[back] & seen[front]).bit_count() < MIN_COVERED for back, front in self._behind):
            return
        self._behind += [(back, len(self.things)) for back, count in enumerate(hidden) if count]
        self.things.append(thing)
        self._masks.append(mask)
        self._seen = [*seen, mask]

    def scene(self) -> Scene:
        return tuple(
            Thing(*_fields(thing), tuple(front for back, front in self._behind if back == index))
            for index, thing in enumerate(self.things)
        )


def _fields(thing: Thing) -> tuple[str, str, str, int, int, int]:
    return thing.size, thing.color, thing.shape, thing.x, thing.y, thing.radius


def render(scene: Scene, draws: Draws) -> NDArray[np.uint8]:
    """RGB of a scene on a textured ground: (64, 64, 3)."""
    image = _ground(draws)
    for thing in scene:
        color = np.array([level + draws.below(33) - 16 for level in COLORS[thing.color]])
        for radius, paint in ((thing.radius, color * 5 // 9), (thing.radius - 1, color)):  # a dark rim
            share = _coverage(thing.shape, radius)[:, :, None]
            rows = slice(thing.y - radius, thing.y + radius + 1)
            columns = slice(thing.x - radius, thing.x + radius + 1)
            image[rows, columns] = (share * paint + (16 - share) * image[rows, columns] + 8) // 16
    return image.clip(0, 255).astype(np.uint8)


def _ground(draws: Draws) -> NDArray[np.int64]:
    """A grey, hardly tinted ground with noise: plain, striped, checked, or darker to one side."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    period, contrast, kind = 3 + draws.below(6), 8 + draws.below(33), draws.below(6)
    patterns = [rows * 0, rows // period, columns // period]
    patterns += [(rows + columns) // period, rows // period + columns // period]
    pattern = patterns[kind] % 2 * contrast if kind < 5 else (rows + columns) * contrast // (2 * SIDE)
    noise = np.frombuffer(hashlib.shake_128(draws.name.encode()).digest(SIDE * SIDE), dtype=np.uint8) % 17
    tone = 70 + draws.below(100)
    tint = np.array([tone + draws.below(17) for _ in range(3)])
    ground: NDArray[np.int64] = (pattern + noise.reshape(SIDE, SIDE))[:, :, None] + tint
    return ground


def bmp_bytes(image: NDArray[np.uint8]) -> bytes:
    """A BMP file of an RGB image (height, width, 3); the width is a multiple of 4."""
    height, width = image.shape[:2]
    pixels = image[::-1, :, ::-1].tobytes()
    header = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0) + pixels
