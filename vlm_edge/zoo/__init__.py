"""The models that come with the package, and the sizes at which ``zoo create`` makes random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ZooEntry:
    """One shipped checkpoint: ``zoo:NAME`` in a recipe."""

    name: str
    summary: str

    @property
    def folder(self) -> Path:
        return MODELS / self.name


def _by_name(*entries: ZooEntry) -> dict[str, ZooEntry]:
    return {entry.name: entry for entry in entries}


ZOO: dict[str, ZooEntry] = _by_name(
    ZooEntry(
        "blip-easyvqa",
        "BlipForQuestionAnswering trained from scratch on easy-VQA: questions about coloured shapes, 64x64",
    ),
    ZooEntry(
        "clip-easyvqa",
        "CLIPModel trained on easy-VQA's images and captions of their colour and shape: zero-shot classification",
    ),
)

STUDENT_WEIGHTS: dict[str, ZooEntry] = _by_name(
    ZooEntry(
        "mobilevit-xxs-easyvqa",
        "MobileViT-XXS distilled from blip-easyvqa's vision tower by recipes/distill-easyvqa.yaml",
    ),
)
"""Weights that distillation may start from (``start: zoo:NAME``): vision towers alone, not whole checkpoints."""

SIZES: dict[str, tuple[str, ...]] = {
    "blip-vqa": ("tiny", "small", "base"),
    "blip-captioning": ("tiny", "base"),
    "blip-mobilevit": ("mobilevit-xxs", "mobilevit-xs", "mobilevit-s"),
    "clip": ("tiny", "vit-b-32", "vit-b-16", "vit-l-14"),
}
"""Models that ``zoo create NAME --size SIZE`` makes: real architectures with seeded random weights."""
