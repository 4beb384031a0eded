"""What the tool knows of one architecture. One file per family; the table is in ``families/__init__.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    names to {axis: dimension name}; ``output_shapes`` gives each output's shape in those names. ``may_be_empty`` names
    the dimensions that can be 0 (a cache at the first step); the others start at 1.
    """

    module: nn.Module
    example: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]
    output_shapes: Mapping[str, tuple[int | str, ...]]
    may_be_empty: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TrainingBatch:
    """Questions about images, as tensors. Several questions may share an image.

    pixel_values (images, 3, height, width) float32; image_index (questions,) int64, the row of pixel_values that each
    question asks about; input_ids and attention_mask (questions, tokens) int64. VQA: decoder_input_ids and labels
    (questions, answer_tokens) int64, aligned: ``task_logits[:, t]`` predicts ``labels[:, t]``, nothing is shifted;
    -100 where no loss is taken. Dual encoders: input_ids are the candidates' prompts (labels, tokens), and labels
    (questions,) the row of the right one.
    """

    pixel_values: Tensor
    image_index: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor | None = None
    labels: Tensor | None = None

    def to(self, device: torch.device) -> TrainingBatch:
        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return TrainingBatch(
            pixel_values=self.pixel_values.to(device),
            image_index=self.image_index.to(device),
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            decoder_input_ids=moved(self.decoder_input_ids),
            labels=moved(self.labels),
        )


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

    def generation(self, checkpoint: Path) -> Generation | None:
        """How answers are decoded; None for dual encoders."""
        ...

    def logit_scale(self, model: nn.Module) -> float | None:
        """What dual encoders multiply cosines by; None for the others."""
        ...

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        """Every component, in the order that the pipeline runs them."""
        ...

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """Every attention module whose query, key and value are Linears of their own, in the model's order."""
        ...

    vision_tower_path: str
    """Dotted name of the vision tower's module, which distillation replaces."""

    def encode_image(self, model: nn.Module, pixel_values: Tensor) -> Tensor:
        """(images, 3, height, width) -> features (images, tokens, hidden), or (images, dim) for dual encoders."""
        ...

    def collate(
        self,
        samples: Sequence[Sample],
        pixel_values: Tensor,
        image_index: Tensor,
        checkpoint: Path,
        *,
        labels: Sequence[str] = (),
        prompts: Sequence[str] = (),
    ) -> TrainingBatch:
        """Tokenize questions and answers for training; padding and labels as the architecture wants them.

        ``labels`` and ``prompts`` are the data set's (dual encoders only). Without labels the candidates are the
        batch's own classes; only the first prompt is used.
        """
        ...

    def task_logits(self, model: nn.Module, image_features: Tensor, batch: TrainingBatch) -> Tensor:
        """Logits that the task's answer is read from, teacher-forced.

        VQA: (questions, answer_tokens, vocab). Dual encoders: (questions, labels), the scaled similarities.
        ``image_features`` is :meth:`encode_image`'s output, one row an image.
        """
        ...
