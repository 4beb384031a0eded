"""What a data set can resolve: how many samples a bound needs before an interval can keep it, and before it does.

The answers are those of the intervals in :mod:`vlm_edge.statistics.intervals`. Samples are independent ones: where
several questions share an image, count images. Every ``confidence`` is two-sided.

Sources: Tango, Statistics in Medicine 17 (1998) 891, and Wilson, JASA 22 (1927) 209, both with nothing changed or
nothing wrong; Liu, Hsueh, Hsieh & Chen, Statistics in Medicine 21 (2002) 231 (sample size of non-inferiority with
paired shares).
"""

from __future__ import annotations

import math
from statistics import NormalDist

from vlm_edge.statistics.intervals import CONFIDENCE, normal_quantile


def smallest_drop(n: int, confidence: float = CONFIDENCE) -> float:
    """The smallest bound on a paired drop of scores in 0..1 that a candidate can keep on n samples, in 0..1.

    It is the upper end of Tango's interval when no answer changed, z^2 / (n + z^2): 0.28 for n = 10.
    """
    z = normal_quantile(confidence)
    return z * z / (n + z * z)


def samples_for_drop(bound: float, confidence: float = CONFIDENCE) -> int | None:
    """The fewest samples on which a drop of at most ``bound`` (in 0..1) can pass; None if none suffice (bound 0).

    With fewer, even a candidate that answers all alike is UNDECIDED. 73 for 0.05, 381 for 0.01.
    """
    if bound <= 0:
        return None
    z = normal_quantile(confidence)
    return max(1, math.ceil(z * z * (1 - bound) / bound))


def samples_for_ratio(min_ratio: float, confidence: float = CONFIDENCE) -> int | None:
    """The fewest samples on which candidate / baseline >= ``min_ratio`` can pass; None if none suffice (ratio 1).

    That is with a baseline that is always right; one that is right in a share p of the samples needs about 1/p as many.
    """
    return samples_for_drop(1 - min_ratio, confidence)


def samples_for_share(at_least: float, confidence: float = CONFIDENCE) -> int | None:
    """The fewest samples on which a share of at least ``at_least`` can pass; None if none suffice (a share of 1).

    With fewer, even all right is UNDECIDED: Wilson's lower end is then n / (n + z^2). 35 for 0.9.
    """
    return samples_for_drop(1 - at_least, confidence)


def samples_to_tell(
    bound: float,
    drop: float,
    changed: float,
    design_effect: float = 1.0,
    confidence: float = CONFIDENCE,
    sure: float = 0.95,
) -> int:
    """How many samples tell a true ``drop`` from ``bound`` (both in 0..1) in the share ``sure`` of all sets.

    Args:
        changed: the share of samples whose answer turns from right to wrong or back.
        design_effect: variance of the mean drop relative to that of as many independent samples.

    Liu et al. 2002, section 4: n = (z + z_sure)^2 (changed - drop^2) / (drop - bound)^2, times the design effect.
    """
    z = normal_quantile(confidence) + NormalDist().inv_cdf(sure)
    return math.ceil(design_effect * z * z * (changed - drop * drop) / (drop - bound) ** 2)
