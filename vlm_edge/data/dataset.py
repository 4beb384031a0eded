"""Data sets as the rest of the package sees them: samples, a task kind and a digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlm_edge.data.kinds import TaskKind
from vlm_edge.errors import VlmEdgeError

Split = Literal["calibration", "train", "test"]


@dataclass(frozen=True)
class Sample:
    """One question about one image, or one image with its class or its captions.

    ``answers`` holds every annotator's answer (VQA), the class label (classification), every caption (captioning, with
    no ``text``; retrieval, where ``text`` is the first of them), or yes or no (hallucination). ``slices`` names the
    groups that the report breaks the score down by (``color``, ``yes/no`` ...).
    """

    id: str
    image: Path
    text: str
    answers: tuple[str, ...]
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """One split of a data set, in a fixed order. ``digest`` covers the manifest, the split and the source's content."""

    name: str
    kind: TaskKind
    split: Split
    samples: tuple[Sample, ...]
    digest: str
    labels: tuple[str, ...] = ()
    """Candidate classes (classification) in the order of the model's answer; empty for other kinds."""
    prompts: tuple[str, ...] = ()
    """Prompt templates with ``{}`` for the label (classification), or what every caption begins with (captioning)."""


MAX_UNREADABLE = 0.01
"""The share of a split's images that may be skipped."""


def check_unreadable(dataset: str, split: str, unreadable: Mapping[str, str], total: int) -> None:
    """Let a few unreadable images pass: ``unreadable`` has the reason of each, out of ``total``.

    Raises:
        VlmEdgeError: more than :data:`MAX_UNREADABLE` of them can't be read.
    """
    if len(unreadable) <= MAX_UNREADABLE * total:
        return
    name, reason = next(iter(unreadable.items()))
    raise VlmEdgeError(
        f"{dataset}: {len(unreadable)} of {total} {split} images can't be read, more than {MAX_UNREADABLE:.0%}; "
        f"the first is {name}: {reason}",
        "repair these images, or remove them from the data set",
    )
