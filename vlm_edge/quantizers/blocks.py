"""Block quantization of weights: a few input channels share a scale and zero point, as 4 bits need.

Eight levels on either side are few, so each block takes its own range, and clips it where that makes the squared error
smaller. The layout is that of com.microsoft.MatMulNBits (onnxruntime, docs/ContribOperators.md): blocks run along a
row's input channels, two 4-bit levels share a byte, the first in its low half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Levels = NDArray[np.uint8]

RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Shares of a block's range that 4-bit levels are tried on: 0.2 dB over the whole range alone."""
_CHUNK = 1 << 22
"""Elements that are worked on at a time."""


@dataclass(frozen=True)
class Blocks:
    """A weight (in, out): ``scale * (level - zero_point)``.

    levels: (out, blocks, block_size), 0 .. 2^bits - 1; past ``width`` input channels they stand for 0.
    scales, zero_points: (out, blocks), float32 and positive, and uint8.
    """

    levels: Levels
    scales: Float
    zero_points: Levels
    bits: int
    width: int

    @property
    def block_size(self) -> int:
        return int(self.levels.shape[2])

    def restored(self) -> Float:
        """The weight that they stand for, (in, out) float32."""
        steps = self.levels.astype(np.float32) - self.zero_points.astype(np.float32)[..., None]
        rows: Float = (steps * self.scales[..., None]).reshape(len(self.levels), -1)[:, : self.width]
        return np.ascontiguousarray(rows.T)

    def packed(self) -> tuple[Levels, Levels]:
        """Levels (out, blocks, block_size * bits / 8) and zero points (out, ceil(blocks * bits / 8))."""
        return _packed(self.levels, self.bits), _packed(self.zero_points, self.bits)


def quantize_blocks(weight: Float, bits: int, block_size: int) -> Blocks:
    """Round to nearest in blocks; 4 bits with the range out of :data:`RATIOS` that has the least squared error.

    Args:
        weight: (in, out), finite; ``in`` need not be a multiple of ``block_size``.
        bits: 4 or 8.
        block_size: a power of two, at least 16.
    """
    width, rows = weight.shape
    blocks = -(-width // block_size)
    levels = np.empty((rows, blocks, block_size), np.uint8)
    scales, zero_points = np.empty((rows, blocks), np.float32), np.empty((rows, blocks), np.uint8)
    ratios = RATIOS if bits == 4 else (1.0,)
    step = max(1, _CHUNK // (blocks * block_size))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        values = np.zeros(levels[part].shape, np.float32)
        values.reshape(len(values), -1)[:, :width] = weight[:, part].T
        levels[part], scales[part], zero_points[part] = _least_error(values, 2**bits - 1, ratios)
    return Blocks(levels, scales, zero_points, bits, width)


def quantize_symmetric_blocks(weight: Float, block_size: int) -> tuple[NDArray[np.int8], Float]:
    """4 bits around 0, as TensorRT takes them: the scale out of :data:`RATIOS` that has the least squared error.

    Args:
        weight: (in, out), finite; ``in`` is a multiple of ``block_size``.

    Returns:
        levels (in, out), -8 .. 7, and scales (in / block_size, out), float32 and positive.
    """
    values = weight.reshape(-1, block_size, weight.shape[1])
    largest = np.abs(values).max(axis=1, keepdims=True)
    levels, scales = np.empty(values.shape, np.int8), np.empty(largest.shape, np.float32)
    least = np.full(largest.shape, np.inf, np.float32)
    for ratio in RATIOS:
        scale = largest * np.float32(ratio / 7)
        scale = np.where(scale >= np.finfo(np.float32).tiny, scale, 1).astype(np.float32)
        found = np.clip(np.rint(values / scale), -8, 7)
        error = np.square(values - found * scale).sum(axis=1, keepdims=True)
        better = error < least
        least, scales = np.where(better, error, least), np.where(better, scale, scales)
        levels = np.where(better, found, levels).astype(np.int8)
    return levels.reshape(weight.shape), scales[:, 0]


def fitting_block(width: int, largest: int) -> int:
    """The largest power of two from 32 to ``largest`` that pads ``width`` input channels least."""
    sizes = [largest >> shift for shift in range(largest.bit_length()) if largest >> shift >= 32]
    return min(sizes, key=lambda size: -(-width // size) * size)


def unpacked_blocks(
    levels: Levels, scales: Float, zero_points: Levels | None, *, bits: int, block_size: int, width: int
) -> Blocks:
    """The inputs of a MatMulNBits, as :meth:`Blocks.packed` writes them; no zero points stand for the middle level."""
    rows, blocks = levels.shape[:2]
    if zero_points is None:
        middles = np.full((rows, blocks), 2 ** (bits - 1), np.uint8)
    else:
        middles = _unpacked(zero_points.reshape(rows, -1), bits)[:, :blocks]
    found = _unpacked(levels, bits).reshape(rows, blocks, block_size)
    return Blocks(found, scales.reshape(rows, blocks), middles, bits, width)


def _least_error(values: Float, top: int, ratios: tuple[float, ...]) -> tuple[Levels, Float, Levels]:
    """Levels, scales and zero points of blocks (rows, blocks, block_size)."""
    low, high = values.min(axis=2).clip(max=0), values.max(axis=2).clip(min=0)
    shape = low.shape
    best = np.empty(values.shape, np.uint8), np.empty(shape, np.float32), np.empty(shape, np.uint8)
    least = np.full(shape, np.inf, np.float32)
    for ratio in ratios:
        scale = (high - low) * np.float32(ratio / top)
        scale = np.where(scale >= np.finfo(np.float32).tiny, scale, 1).astype(np.float32)
        middle = np.clip(np.rint(-low * np.float32(ratio) / scale), 0, top)
        levels = np.clip(np.rint(values / scale[..., None]) + middle[..., None], 0, top)
        error = np.square(values - (levels - middle[..., None]) * scale[..., None]).sum(axis=2)
        better = error < least
        least = np.where(better, error, least)
        best[0][better], best[1][better], best[2][better] = levels[better], scale[better], middle[better]
    return best


def _packed(levels: NDArray[Any], bits: int) -> Levels:
    """4-bit levels two to a byte along the last axis, which is padded to an even length."""
    if bits == 8:
        return levels
    if levels.shape[-1] % 2:
        levels = np.concatenate([levels, np.zeros_like(levels[..., :1])], axis=-1)
    packed: Levels = levels[..., 0::2] | (levels[..., 1::2] << np.uint8(4))
    return packed


def _unpacked(values: Levels, bits: int) -> Levels:
    if bits == 8:
        return values
    return np.stack([values & np.uint8(15), values >> np.uint8(4)], axis=-1).reshape(*values.shape[:-1], -1)
