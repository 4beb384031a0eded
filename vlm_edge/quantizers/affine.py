"""Affine INT8 quantization in numpy, and the distance of a quantized result from its reference.

An integer q stands for the real number ``scale * (q - zero_point)`` (Jacob et al. 2018, arXiv:1712.05877, eq. 1).
Rounding is to the nearest even number and saturates, as ONNX's QuantizeLinear does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Int8 = NDArray[np.int8]
Levels = NDArray[Any]
"""int8 or uint8."""
Array = NDArray[Any]
_AT_ONCE = 1 << 20
"""Elements that are worked on at a time in float64."""


def quantize(values: Float, scale: Float, zero_point: Levels) -> Levels:
    """Real values to integers of ``zero_point``'s type (int8 or uint8); all three broadcast."""
    limits = np.iinfo(zero_point.dtype)
    levels = np.rint(values / scale) + zero_point.astype(np.float32)
    result: Levels = np.clip(levels, limits.min, limits.max).astype(zero_point.dtype)
    return result


def dequantize(levels: Levels, scale: Float, zero_point: Levels) -> Float:
    """Integers to the real numbers that they stand for, float32; all three broadcast."""
    return scale * (levels.astype(np.float32) - zero_point.astype(np.float32))


def quantize_weight(weight: Float, axis: int, *, bits: int = 8) -> tuple[Int8, Float]:
    """Symmetric quantization of a weight, each slice along ``axis`` with its own scale and zero point 0.

    Args:
        weight: any shape, finite.
        axis: the channel axis; every slice along it uses its largest magnitude as the last level.
        bits: 8 for levels -127..127; 7 for -63..63, so that a sum of two products of an unsigned and a signed level
            stays within 16 bits on x86 without VNNI, whose multiply-add saturates there.

    Returns:
        levels of ``weight``'s shape, and scales (channels,) float32, all positive.
    """
    top = 2 ** (bits - 1) - 1
    others = tuple(other for other in range(weight.ndim) if other != axis % weight.ndim)
    largest = np.abs(weight).max(axis=others, initial=0.0)
    scale = _scale(largest, top)
    shape = [-1 if index == axis % weight.ndim else 1 for index in range(weight.ndim)]
    levels = np.clip(np.rint(weight / scale.reshape(shape)), -top, top).astype(np.int8)
    return levels, scale


def _scale(largest: Float, top: int) -> Float:
    """The scale with which ``largest`` is level ``top``; 1 where that would be 0 or denormal."""
    scale = largest / np.float32(top)
    result: Float = np.where(scale >= np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32)
    return result


def quantize_rows(table: Float, block: int) -> tuple[NDArray[np.uint8], Float]:
    """Symmetric quantization of the rows of a table in blocks of ``block`` columns, stored with zero point 128.

    Args:
        table: (rows, columns), finite; ``columns`` need not be a multiple of ``block``.

    Returns:
        levels (rows, columns) in 1..255, and scales (rows, ceil(columns / block)) float32, all positive.
    """
    rows, columns = table.shape
    blocks = -(-columns // block)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :columns] = table
    largest = np.abs(padded.reshape(rows, blocks, block)).max(axis=2)
    scale = _scale(largest, 127)
    levels = np.clip(np.rint(table / np.repeat(scale, block, axis=1)[:, :columns]), -127, 127) + 128
    return levels.astype(np.uint8), scale


@dataclass
class Agreement:
    """Agreement of a quantized output with its reference, added up over runs; shapes may differ between runs."""

    dot: float = 0.0
    reference_square: float = 0.0
    value_square: float = 0.0
    error_square: float = 0.0
    runs: int = 0

    def add(self, reference: Array, value: Array) -> None:
        """One run's output and its reference, of one shape."""
        references, values = np.ravel(reference), np.ravel(value)
        for start in range(0, references.size, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            wanted, got = references[part].astype(np.float64), values[part].astype(np.float64)
            self.dot += float(wanted @ got)
            self.reference_square += float(wanted @ wanted)
            self.value_square += float(got @ got)
            self.error_square += float(np.square(wanted - got).sum())
        self.runs += 1

    @property
    def cosine(self) -> float:
        """Cosine of the angle between all references and all values, -1..1; 1 when both are all zeros.

        A value that is not finite gives -1, the worst.
        """
        if not np.isfinite(self.error_square):
            return -1.0
        if self.error_square == 0.0:
            return 1.0
        product = self.reference_square * self.value_square
        return self.dot / float(np.sqrt(product)) if product > 0 else 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, 10 log10(sum reference^2 / sum error^2), in dB; 200 stands for no error."""
        if not np.isfinite(self.error_square):
            return -200.0
        if self.error_square == 0.0:
            return 200.0
        ratio = self.reference_square / self.error_square
        return float(np.clip(10 * np.log10(ratio), -200, 200)) if ratio > 0 else -200.0


def agreement(
    pairs: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]], totals: dict[str, Agreement] | None = None
) -> dict[str, Agreement]:
    """Agreement of every output by name, over (references, values) of many runs; empty outputs are passed over.

    Args:
        pairs: the runs.
        totals: of runs before, which these are added to.
    """
    totals = {} if totals is None else totals
    for references, values in pairs:
        for name, reference in references.items():
            if reference.size:
                totals.setdefault(name, Agreement()).add(reference, values[name])
    return totals
