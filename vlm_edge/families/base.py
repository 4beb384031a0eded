"""What the tool knows of one architecture. One file per family; the table is in ``families/__init__.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlm_edge.data.dataset import Sample
from vlm_edge.processing.manifest import Generation, ImageProcessing, TextProcessing


class AttentionRole(StrEnum):
    """What an attention module attends to."""

    SELF = "self"
    CROSS = "cross"
    GATED_CROSS = "gated_cross"


@dataclass(frozen=True)
class AttentionSite:
    """One multi-head attention module, by its parts, so that surgery needs no knowledge of the architecture.

    ``module`` holds ``num_heads_attr`` (and whatever names ``all_head_size_attr``) to be updated after heads are
    removed. ``q``, ``k``, ``v`` are Linear (width -> heads x head_dim; key and value widths may differ from the
    query's), ``out`` is Linear (heads x head_dim -> width). Paths are dotted names from the model's root.
    """

    path: str
    role: AttentionRole
    component: str
    num_heads: int
    head_dim: int
    q: str
    k: str
    v: str
    out: str
    num_heads_attr: str
    all_head_size_attr: str | None = None


@dataclass(frozen=True)
class ComponentExport:
    """One component as the exporter needs it.

    ``module(*example.values())`` returns a tuple of tensors in the order of ``outputs``. ``example`` maps input names
    to tensors, with different sizes for every dynamic dimension (and none of size 0 or 1). ``dynamic`` maps input
    names to {axis: dimension name}; ``output_shapes`` gives each output's shape in those names.
    """

    module: nn.Module
    example: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]
    output_shapes: Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True)
class TrainingBatch:
    """Questions about images, as tensors. Several questions may share an image.

    pixel_values (images, 3, height, width) float32; image_index (questions,) int64, the row of pixel_values that each
    question asks about; input_ids and attention_mask (questions, tokens) int64; decoder_input_ids and labels
    (questions, answer_tokens) int64 with -100 where no loss is taken.
    """

    pixel_values: Tensor
    image_index: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor | None = None
    labels: Tensor | None = None

    def to(self, device: torch.device) -> TrainingBatch:
        moved = {name: None if value is None else value.to(device) for name, value in vars(self).items()}
        return replace(self, **moved)


class Family(Protocol):
    """One architecture. ``model`` is always the transformers model that :func:`load_checkpoint` gives."""

    name: str
    architectures: tuple[str, ...]
    """Class names in config.json's ``architectures`` that this family loads."""
    pipeline: str
    """``vqa`` or ``dual_encoder``: which runtime pipeline composes the components."""
    task_kinds: tuple[str, ...]

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The transformers model from its config.json, weights not loaded."""
        ...

    def image_processing(self, checkpoint: Path) -> ImageProcessing: ...

    def text_processing(self, checkpoint: Path) -> TextProcessing: ...

    def generation(self, checkpoint: Path) -> Generation | None: ...

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        """Every component, in the order that the pipeline runs them."""
        ...

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """Every attention module outside the vision tower and inside it, with its role."""
        ...

    vision_tower_path: str
    """Dotted name of the vision tower's module, which distillation replaces."""

    def encode_image(self, model: nn.Module, pixel_values: Tensor) -> Tensor:
        """(images, 3, height, width) -> features (images, tokens, hidden), or (images, dim) for dual encoders."""
        ...

    def collate(
        self, samples: Sequence[Sample], pixel_values: Tensor, image_index: Tensor, checkpoint: Path
    ) -> TrainingBatch:
        """Tokenize questions and answers for training; padding and labels as the architecture wants them."""
        ...

    def task_logits(self, model: nn.Module, image_features: Tensor, batch: TrainingBatch) -> Tensor:
        """Logits that the task's answer is read from, teacher-forced.

        VQA: (questions, answer_tokens, vocab). ``image_features`` is :meth:`encode_image`'s output, one row an image.
        """
        ...
