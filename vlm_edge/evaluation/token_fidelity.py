"""How alike two engines' generated tokens are, whether or not they are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from numpy.typing import ArrayLike

from vlm_edge.core.measurement import Measurement
from vlm_edge.statistics.intervals import Interval, mean_score_interval

Tokens = Sequence[Sequence[int]]


def token_agreement(candidate: Sequence[int], baseline: Sequence[int]) -> float:
    """The share of positions with the same token, over the longer of the two; 1 if both are empty.

    Positions, not a matching: after an inserted token nothing agrees any more, as greedy decoding itself goes astray
    from the first token that differs.
    """
    longer = max(len(candidate), len(baseline))
    if not longer:
        return 1.0
    return sum(ours == theirs for ours, theirs in zip(candidate, baseline, strict=False)) / longer


def exact_match(candidate: Sequence[int], baseline: Sequence[int]) -> float:
    """1 if every token is the same and neither has more, else 0."""
    return float(list(candidate) == list(baseline))


def token_fidelity(
    baseline: Tokens, candidate: Tokens, groups: ArrayLike, *, same: bool, seed: int
) -> list[Measurement]:
    """``token_agreement`` and ``exact_match`` of two engines' tokens for the same samples: the means over samples.

    Args:
        baseline: each sample's token ids, without the end token.
        candidate: the other engine's.
        groups: (samples,): what a sample shares its luck with; resampled together.
        same: both are of one engine, which is as close to itself as can be.
        seed: of the bootstrap.
    """
    return [
        _mean_of(metric, of, baseline, candidate, groups, same, seed)
        for metric, of in (("token_agreement", token_agreement), ("exact_match", exact_match))
    ]


def _mean_of(
    metric: str,
    of: Callable[[Sequence[int], Sequence[int]], float],
    baseline: Tokens,
    candidate: Tokens,
    groups: ArrayLike,
    same: bool,
    seed: int,
) -> Measurement:
    scores = [of(ours, theirs) for ours, theirs in zip(candidate, baseline, strict=True)]
    interval = Interval(1.0, 1.0) if same else mean_score_interval(scores, groups, seed=seed)
    value = sum(scores) / len(scores)
    return Measurement(metric=metric, low=interval.low, value=value, high=interval.high, n=len(scores), unit="share")
