"""Drawing samples: by answer for calibration, by whole images for the other splits. Seeded, and in a fixed order."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from vlm_edge.data.dataset import Sample


def draw_whole_images(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most ``count`` samples: images in a seeded order, each with all its samples (the last one's may be cut).

    A smaller draw of the same seed is part of a larger one. The order of ``samples`` is kept.
    """
    positions: dict[Path, list[int]] = defaultdict(list)
    for position, sample in enumerate(samples):
        positions[sample.image].append(position)
    images = list(positions)
    random.Random(seed).shuffle(images)
    chosen: list[int] = []
    for image in images:
        if len(chosen) >= count:
            break
        chosen.extend(positions[image])
    return [samples[position] for position in sorted(chosen[:count])]


def draw_stratified(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most ``count`` samples with the answers' own proportions, and every answer once if ``count`` allows it.

    Within an answer, images that were not drawn yet come first. The order of ``samples`` is kept.
    """
    strata: dict[str, list[int]] = defaultdict(list)
    for position, sample in enumerate(samples):
        strata[sample.answers[0]].append(position)
    generator = random.Random(seed)
    chosen: list[int] = []
    used: set[Path] = set()
    answers = sorted(strata)
    if count < len(answers):  # captions, say: which of the equally frequent ones is not to depend on the alphabet
        generator.shuffle(answers)
    shares = _shares({answer: len(strata[answer]) for answer in answers}, min(count, len(samples)))
    for answer, share in sorted(shares.items(), key=lambda item: len(strata[item[0]])):
        shuffled = generator.sample(strata[answer], len(strata[answer]))
        for position in _fresh_first(samples, shuffled, used)[:share]:
            chosen.append(position)
            used.add(samples[position].image)
    return [samples[position] for position in sorted(chosen)]


def _fresh_first(samples: Sequence[Sample], positions: Sequence[int], used: set[Path]) -> list[int]:
    """Positions on images that are not used, one an image, before the others."""
    fresh: dict[Path, int] = {}
    for position in positions:
        image = samples[position].image
        if image not in used:
            fresh.setdefault(image, position)
    first = set(fresh.values())
    return [*fresh.values(), *(position for position in positions if position not in first)]


def _shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """``count`` over the strata: one each while it lasts, largest first, then to the one furthest below its share."""
    total = sum(sizes.values())
    largest = sorted(sizes, key=lambda answer: -sizes[answer])
    shares = dict.fromkeys(sizes, 0) | dict.fromkeys(largest[:count], 1)
    # (how far above its share, its place, answer) of those that are not used up
    waiting = [
        (1 - count * sizes[answer] / total, place, answer) for place, answer in enumerate(sizes) if sizes[answer] > 1
    ]
    heapq.heapify(waiting)
    for _ in range(count - len(sizes)):
        _, place, answer = heapq.heappop(waiting)
        shares[answer] += 1
        if shares[answer] < sizes[answer]:
            heapq.heappush(waiting, (shares[answer] - count * sizes[answer] / total, place, answer))
    return shares
