"""The range of a quantizer from a histogram of its tensor: every value, a percentile, least error or least entropy.

A histogram has a fixed number of bins over [-reach, reach], where reach is a power of two that doubles when a value
lies outside: two bins then become one, exactly, so that memory is bounded and the order of the values makes no
difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]
Range = tuple[float, float]
"""Least and greatest value that a quantizer keeps apart; 0 lies between."""
Counts = NDArray[np.int64]

BINS = 16384
LEVELS = 256
SHRINKS = np.geomspace(1.0, 0.02, 96)
"""Parts of the full range that are tried for the least error."""
ENTROPY_BINS = 2048
_LEAST_REACH = 2.0**-60


@dataclass
class Histogram:
    """Counts of values by bin: bin i holds [-reach + i w, -reach + (i + 1) w) with w = 2 reach / BINS."""

    reach: float = _LEAST_REACH
    low: float = np.inf
    high: float = -np.inf
    counts: Counts = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: NDArray[Any]) -> None:
        """Count values of any shape.

        Raises:
            ValueError: one of them is not finite.
        """
        flat = np.ravel(values).astype(np.float32, copy=False)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite(high - low):
            raise ValueError("a value is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        bins = np.multiply(flat, np.float32(BINS / (2 * self.reach)))
        np.floor(bins, out=bins)
        positions = bins.astype(np.intp)
        positions += BINS // 2
        np.minimum(positions, BINS - 1, out=positions)
        self.counts += np.bincount(positions, minlength=BINS)

    def _widen(self, largest: float) -> None:
        if largest > self.reach and not self.counts.any():
            self.reach = float(2.0 ** np.ceil(np.log2(largest)))
        while largest > self.reach:
            quarter = BINS // 4
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(quarter, np.int64), merged, np.zeros(quarter, np.int64)])
            self.reach *= 2

    @property
    def edges(self) -> NDArray[np.float64]:
        """(BINS + 1,)"""
        return np.linspace(-self.reach, self.reach, BINS + 1)

    def occupied(self) -> tuple[NDArray[np.float64], Counts]:
        """Middles and counts of the bins that hold anything."""
        found = np.flatnonzero(self.counts)
        width = 2 * self.reach / BINS
        middles: NDArray[np.float64] = -self.reach + (found.astype(np.float64) + 0.5) * width
        return middles, self.counts[found]


def range_of(histogram: Histogram, method: RangeMethod, *, percentile: float = 99.99, symmetric: bool = False) -> Range:
    """The range for 8 bits.

    Args:
        histogram: of at least one value.
        method: ``minmax``: every value seen. ``percentile``: all but the part above ``percentile`` and as much below.
            ``mse``: least mean squared error. ``entropy``: least Kullback-Leibler divergence.
        percentile: 50 to 100.
        symmetric: the quantizer's zero point is the middle of its levels, so the range is, too.
    """
    choose: dict[str, Callable[[Histogram, bool], Range]] = {
        "minmax": lambda histogram, _: (histogram.low, histogram.high),
        "percentile": partial(_percentile, percentile),
        "mse": _least_error,
        "entropy": lambda histogram, _: _least_entropy(histogram),
    }
    low, high = choose[method](histogram, symmetric)
    low, high = min(max(low, histogram.low), 0.0), max(min(high, histogram.high), 0.0)
    return (-max(-low, high), max(-low, high)) if symmetric else (low, high)


def _percentile(percentile: float, histogram: Histogram, _: bool) -> Range:
    """Bin edges outside of which a part of at most 1 - percentile / 100 lies on either side."""
    total = np.cumsum(histogram.counts)
    outside = (1 - percentile / 100) * total[-1]
    first = int(np.searchsorted(total, outside, side="right"))
    last = int(np.searchsorted(total, total[-1] - outside, side="left"))
    edges = histogram.edges
    return float(edges[first]), float(edges[last + 1])


def _least_error(histogram: Histogram, symmetric: bool) -> Range:
    """The greater side is shrunk first, then the other (a symmetric range has only one)."""
    values, counts = histogram.occupied()
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        reach = max(-low, high)
        tried = [(-reach * part, reach * part) for part in SHRINKS]
        return min(tried, key=lambda each: _squared_error(values, counts, each, LEVELS - 2))
    best = low, high
    for side in (0, 1) if -low > high else (1, 0):
        tried = [(best[0] * part, best[1]) if side == 0 else (best[0], best[1] * part) for part in SHRINKS]
        best = min(tried, key=lambda each: _squared_error(values, counts, each, LEVELS - 1))
    return best


def _squared_error(values: NDArray[np.float64], counts: Counts, limits: Range, steps: int) -> float:
    """Of values that are rounded to ``steps`` steps over ``limits``, zero being on the grid."""
    scale = (limits[1] - limits[0]) / steps
    if scale <= 0:
        return float((counts * np.square(values)).sum())
    least = np.rint(limits[0] / scale)
    rounded = np.clip(np.rint(values / scale), least, least + steps) * scale
    return float((counts * np.square(values - rounded)).sum())


def _least_entropy(histogram: Histogram) -> Range:
    """Magnitudes are cut off where the divergence of their 128 levels from them is least.

    Migacz, 8-bit inference with TensorRT (GTC 2017), slides 18 to 23 and 38.
    """
    magnitudes = histogram.counts[BINS // 2 :] + histogram.counts[: BINS // 2][::-1]
    folded = magnitudes.reshape(ENTROPY_BINS, -1).sum(axis=1).astype(np.float64)
    top = int(np.flatnonzero(folded)[-1]) + 1
    step = max(1, top // 256)
    tried = range(LEVELS // 2, top + 1, step) if top > LEVELS // 2 else (top,)
    best = min(tried, key=lambda bins: _divergence(folded, bins))
    reach = histogram.reach if best == top else histogram.reach * best / ENTROPY_BINS
    return -reach, reach


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """KL(P || Q): P the first ``bins`` counts with all beyond in the last, Q the same counts in 128 levels."""
    wanted = counts[:bins].copy()
    filled = wanted > 0
    wanted[-1] += counts[bins:].sum()
    level = np.minimum(np.arange(bins) * (LEVELS // 2) // bins, LEVELS // 2 - 1)
    sums = np.bincount(level, counts[:bins], LEVELS // 2)
    places = np.bincount(level, filled, LEVELS // 2)
    got = np.where(filled, (sums / np.maximum(places, 1))[level], 0.0)
    if not got.sum():
        return float("inf")
    wanted, got = wanted / wanted.sum(), got / got.sum()
    both = (wanted > 0) & (got > 0)
    missing = wanted[(wanted > 0) & (got == 0)].sum()  # what was cut off, where the last bin itself is empty
    return float((wanted[both] * np.log(wanted[both] / got[both])).sum() + missing * 30)
