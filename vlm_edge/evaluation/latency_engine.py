"""Times of one engine, round by round, and the speed-up between two engines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlm_edge.statistics.timing import LOOKED_AT, Estimate, fewest_queries, ratio_interval

RECOVERY_MS = 2.0
"""After this an engine slowed by 10% is measured as such again, on two cores with five times as many busy processes."""

Times = list[list[list[float]]]


@dataclass(frozen=True)
class Block:
    """Queries of one turn: their times in ms, and which of them were disturbed."""

    ms: list[float]
    disturbed: list[bool]


def disturbed_queries(times_ms: Sequence[float], interrupted: Sequence[bool]) -> list[bool]:
    """Flags of queries, one right after another, that something else slowed.

    During such a query the system took a CPU away from the process, or it began within ``RECOVERY_MS`` of such a
    query's end: what ran instead has put its data out of the caches.
    """
    disturbed, since_ms = [], math.inf
    for time_ms, now in zip(times_ms, interrupted, strict=True):
        disturbed.append(now or since_ms < RECOVERY_MS)
        since_ms = 0.0 if now else since_ms + time_ms
    return disturbed


@dataclass
class Engine:
    """One engine of the measurement: what each round gave. Times are in ms."""

    role: str
    folder: Path
    blocks: list[list[Block]] = field(default_factory=list)
    peaks_mb: list[float] = field(default_factory=list)
    batches: list[list[float]] = field(default_factory=list)
    components: dict[str, list[list[float]]] = field(default_factory=dict)
    stationary: list[bool] = field(default_factory=list)
    warmup_queries: list[int] = field(default_factory=list)

    @property
    def times(self) -> list[list[float]]:
        """The counted queries' times, round by round."""
        return [[time_ms for block in blocks for time_ms in block.ms] for blocks in self.blocks]

    @property
    def disturbed_share(self) -> float:
        """The share of counted queries that were disturbed."""
        flags = [flag for blocks in self.blocks for block in blocks for flag in block.disturbed]
        return sum(flags) / len(flags)


@dataclass(frozen=True)
class Speedup:
    """Baseline's percentile over the candidate's, over ``n`` pairs of queries; ``undisturbed``: only such count."""

    estimate: Estimate | None
    n: int
    undisturbed: bool


def speedup(baseline: Engine, candidate: Engine, quantile: float, confidence: float = LOOKED_AT) -> Speedup:
    """The ratio over pairs of queries (the same sample, in neighbouring blocks) of which neither was disturbed.

    What the system does to a query besides is no property of an engine, and does not slow two engines by the same
    factor: the slower one is interrupted more often. Where too few pairs are left, all count.
    """
    for undisturbed in (True, False):
        before, after = _matched(baseline, candidate, undisturbed)
        n = sum(len(block) for blocks in after for block in blocks)
        if n >= fewest_queries(quantile) and len(after) > 1:
            return Speedup(ratio_interval(before, after, quantile, confidence), n, undisturbed)
    return Speedup(None, n, False)


def _matched(baseline: Engine, candidate: Engine, undisturbed: bool) -> tuple[Times, Times]:
    """Both engines' times by round and block, of the pairs that count; blocks and rounds without any are left out."""
    before: Times = []
    after: Times = []
    for first_blocks, second_blocks in zip(baseline.blocks, candidate.blocks, strict=True):
        kept: list[tuple[list[float], list[float]]] = []
        for first, second in zip(first_blocks, second_blocks, strict=True):
            disturbed = [a or b for a, b in zip(first.disturbed, second.disturbed, strict=True)]
            rows = [position for position, bad in enumerate(disturbed) if not (undisturbed and bad)]
            if rows:
                kept.append(([first.ms[row] for row in rows], [second.ms[row] for row in rows]))
        if kept:
            before.append([block for block, _ in kept])
            after.append([block for _, block in kept])
    return before, after
