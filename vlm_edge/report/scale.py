"""Scales of pictures: values to places, and round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Values low..high to places first..last, evenly, or by their logarithm."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def place(self, value: float) -> float:
        """The place of a value; one beyond an end is put on that end."""
        inside = min(max(value, self.low), self.high)
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, inside))
        return self.first + (self.last - self.first) * (at - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """At most ``most`` round values within the scale."""
        return _log_ticks(self.low, self.high, most) if self.log else _even_ticks(self.low, self.high, most)


def scale_over(values: Iterable[float], first: float, last: float, *, log: bool = False, margin: float = 0.06) -> Scale:
    """A scale that holds all values with a margin (a share of their spread); one value alone gets room around it."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(found), max(found)
    if log:
        spread = max(math.log(high / low), 0.2)
        return Scale(low * math.exp(-margin * spread), high * math.exp(margin * spread), first, last, log=True)
    spread = high - low or abs(high) or 1.0
    return Scale(low - margin * spread, high + margin * spread, first, last)


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for step in (power * factor for factor in (1, 2, 2.5, 5, 10, 20, 25, 50)):
        start, end = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if end - start + 1 <= most:
            return [round(index * step, 12) for index in range(start, end + 1)]
    return []


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [float(f"{f}e{power}") for power in powers for f in factors]
        inside = [value for value in found if low <= value <= high]
        if len(inside) <= most:
            return inside if len(inside) > 1 else _even_ticks(low, high, most)
    return [value for value in (10.0**power for power in powers) if low <= value <= high][:most]
