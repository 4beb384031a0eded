"""Intervals of any smooth function of sums over samples: F1, a mean of CIDEr scores, the change of either.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 (resample the units that were sampled)
and 13 (percentile interval). ``unseen`` is after Wilson, JASA 22 (1927) 209: see :func:`bootstrap_interval`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vlm_edge.statistics.intervals import (
    CONFIDENCE,
    RESAMPLES,
    Floats,
    Interval,
    middle,
    normal_quantile,
    resample_groups,
)

Statistic = Callable[[Floats], Floats]
"""Sums (..., k) -> values (...), NaN where it is not defined."""


def bootstrap_interval(
    statistic: Statistic,
    sums: Floats,
    *,
    seed: int,
    unseen: Floats | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile interval of ``statistic(sums.sum(axis=0))`` over groups drawn with replacement.

    A paired change is a statistic of both engines' columns side by side. Draws without a value (NaN) are left out;
    with none left, both ends are NaN.

    Args:
        sums: (groups, k): each group's sums of per-sample columns.
        unseen: (kinds, k): sums of groups that the data may lack by chance, which a bootstrap can't draw:
            where no answer changed, its interval of a drop is a point. The interval is therefore widened to hold what
            the statistic would be with z^2 further groups of each kind. For a share with no failure seen, or a drop
            with no change seen, that is where Wilson's and Tango's intervals end.
    """
    drawn = statistic(resample_groups(sums, seed, resamples))
    drawn = drawn[np.isfinite(drawn)]
    interval = middle(drawn, confidence) if len(drawn) else Interval(np.nan, np.nan)
    if unseen is None:
        return interval
    z = normal_quantile(confidence)
    ends = statistic(sums.sum(axis=0) + z * z * unseen)
    ends = ends[np.isfinite(ends)]
    return interval.hull(Interval(float(ends.min()), float(ends.max()))) if len(ends) else interval
