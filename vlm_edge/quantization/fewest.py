"""The fewest layers to leave in floating point, where only a trial tells whether a choice is enough."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)


def fewest(ranked: Sequence[Item], suffices: Callable[[frozenset[Item]], bool]) -> list[Item] | None:
    """Members of ``ranked`` that together suffice, in its order, none of which can be done without.

    First the shortest beginning of the ranking that suffices, by bisection; then those of it that the
    others suffice without are dropped (QuickXplain: Junker, AAAI 2004). With k left of n that takes about
    log2(n) + 2 k log2(n / k) trials, and more where the ranking is poor.

    Args:
        ranked: the likeliest first.
        suffices: a trial. Taken to be monotone: more is never worse. Where noise makes it otherwise the result has
            still been tried itself and suffices, but a member of it may not be needed.

    Returns:
        None where not even all of them suffice.
    """
    if suffices(frozenset()):
        return []
    if not suffices(frozenset(ranked)):
        return None
    low, high = 1, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if suffices(frozenset(ranked[:middle])):
            high = middle
        else:
            low = middle + 1
    *before, last = ranked[:high]
    kept = {last, *_needed(before, frozenset({last}), suffices)}
    if not suffices(frozenset(kept)):
        return [*before, last]
    return [item for item in ranked if item in kept]


def _needed(
    candidates: Sequence[Item], given: frozenset[Item], suffices: Callable[[frozenset[Item]], bool]
) -> list[Item]:
    """The members of ``candidates`` that are needed beside ``given``; all of them with it suffice."""
    if not candidates or suffices(given):
        return []
    if len(candidates) == 1:
        return list(candidates)
    half = len(candidates) // 2
    first, second = candidates[:half], candidates[half:]
    later = _needed(second, given.union(first), suffices)
    return [*_needed(first, given.union(later), suffices), *later]
