"""Sample sizes: the smallest bound that a data set can resolve, and the fewest samples with which a bound can pass.

They hold for the intervals of :mod:`vlm_edge.statistics.intervals`. Samples are independent ones: where
several questions share an image, count images. Every ``confidence`` is two-sided.

Sources: Tango, Statistics in Medicine 17 (1998) 891, and Wilson, JASA 22 (1927) 209, both with nothing changed or
nothing wrong.
"""

from __future__ import annotations

import math

from vlm_edge.statistics.intervals import CONFIDENCE, normal_quantile


def smallest_drop(n: int, confidence: float = CONFIDENCE) -> float:
    """The smallest bound on a paired drop of scores in 0..1 that a candidate can keep on n samples, in 0..1.

    It is the upper end of Tango's interval when no answer changed, z^2 / (n + z^2): 0.28 for n = 10.
    """
    z = normal_quantile(confidence)
    return z * z / (n + z * z)


def samples_for_drop(bound: float, confidence: float = CONFIDENCE) -> int | None:
    """The fewest samples on which a drop of at most ``bound`` (in 0..1) can pass; None if none suffice (bound 0).

    With fewer, even a candidate with the same answers is UNDECIDED. 73 for 0.05, 381 for 0.01.
    """
    if bound <= 0:
        return None
    z = normal_quantile(confidence)
    return max(1, math.ceil(z * z * (1 - bound) / bound))


def samples_for_ratio(min_ratio: float, confidence: float = CONFIDENCE) -> int | None:
    """The fewest samples on which candidate / baseline >= ``min_ratio`` can pass; None if none suffice (ratio 1).

    For a baseline that is always right; with one that is right in a share p of the samples, about 1/p as many.
    """
    return samples_for_drop(1 - min_ratio, confidence)


def samples_for_share(at_least: float, confidence: float = CONFIDENCE) -> int | None:
    """The fewest samples on which a share of at least ``at_least`` can pass; None if none suffice (a share of 1).

    With fewer, even a candidate that is always right is UNDECIDED: Wilson's lower end is n / (n + z^2). 35 for 0.9.
    """
    return samples_for_drop(1 - at_least, confidence)
