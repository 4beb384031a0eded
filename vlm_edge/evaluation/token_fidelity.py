"""How alike two engines' generated tokens are, whether or not they are right."""

from __future__ import annotations

from collections.abc import Sequence


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
