"""Samples that a candidate does worse than the baseline, worst first, as a report shows them."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_edge.data.dataset import Dataset
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.outcomes import Outcomes
from vlm_edge.processing.images import read_image

THUMBNAIL_PX = 160


def regressions(baseline: Outcomes, candidate: Outcomes, dataset: Dataset, most: int = 8) -> list[dict[str, Any]]:
    """At most ``most`` samples whose score fell, by how far, and of equal ones every image's first before its second.

    Each has ``id``, ``image`` (its file name), ``text``, ``expected`` (the answers, the most common first), both
    engines' answers as ``baseline`` and ``candidate``, ``score_before``, ``score_after`` and ``thumbnail``: a PNG data
    URL of at most 160 pixels a side, or an empty text where the image cannot be read any more.
    """
    samples = {sample.id: sample for sample in dataset.samples}
    after = {id: row for row, id in enumerate(candidate.ids)}
    old, new = baseline.scores["accuracy"], candidate.scores["accuracy"]
    fallen = [
        (old[row] - new[after[id]], row, after[id])
        for row, id in enumerate(baseline.ids)
        if id in after and id in samples and old[row] > new[after[id]]
    ]
    fallen.sort(key=lambda found: (-found[0], found[1]))
    seen: Counter[tuple[float, Path]] = Counter()
    ranked = []
    for drop, row, other in fallen:
        image = samples[baseline.ids[row]].image
        ranked.append(((-drop, seen[drop, image], row), row, other))
        seen[drop, image] += 1
    found = []
    for _, row, other in sorted(ranked)[:most]:
        sample = samples[baseline.ids[row]]
        found.append(
            {
                "id": sample.id,
                "image": sample.image.name,
                "text": "" if dataset.kind == "retrieval" else sample.text,  # a caption is an answer there
                "expected": _expected(sample.answers),
                "baseline": baseline.predictions[row],
                "candidate": candidate.predictions[other],
                "score_before": old[row],
                "score_after": new[other],
                "thumbnail": thumbnail(sample.image),
            }
        )
    return found


def thumbnail(path: Path) -> str:
    """A small PNG of an image as a data URL; an empty text if it cannot be read."""
    try:
        image = Image.fromarray(read_image(path, "white"))
    except VlmEdgeError:
        return ""
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _expected(answers: Sequence[str]) -> str:
    """The different answers, the most common first, with the number of annotators where they differ."""
    counts = Counter(answers).most_common()
    if len(counts) in (1, len(answers)):
        return ", ".join(answer for answer, _ in counts)
    return ", ".join(f"{answer} ({count})" for answer, count in counts)
