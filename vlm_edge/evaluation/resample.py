"""Bootstrap over groups for any function of sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vlm_edge.numerics.statistics import CONFIDENCE, Interval

Floats = NDArray[np.float64]
RESAMPLES = 2_000


def bootstrap_interval(statistic: Callable[[Floats], Floats], sums: Floats, *, seed: int) -> Interval:
    """Percentile interval of ``statistic`` (sums (..., k) -> (...)) over groups drawn with replacement.

    sums: (groups, k). Draws for which the statistic is not defined (NaN) are left out.
    """
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(sums), counts / len(sums), size=RESAMPLES) @ kinds
    low, high = np.nanquantile(statistic(draws), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(float(low), float(high))
