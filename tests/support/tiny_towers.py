"""Small DINOv2 and MobileViT v1, v2 with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from family_checkpoints import write_checkpoint
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

LABELS = {"id2label": {0: "circle", 1: "square", 2: "star"}, "label2id": {"circle": 0, "square": 1, "star": 2}}
CROPPED = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}


@dataclass(frozen=True)
class Case:
    """A model class, its config and its processor."""

    model: Any
    config: Any
    processor: Any
    image: dict[str, Any]


def dinov2(**labels: Any) -> Any:
    """Trained at 56 x 56 (4 x 4 patches), asked for 28 x 42: its positions have to be interpolated."""
    return transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=56, patch_size=14, **labels
    )


def mobilevit(**labels: Any) -> Any:
    return transformers.MobileViTConfig(
        hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32], image_size=32, **labels
    )


CASES = {
    "dinov2": Case(
        transformers.Dinov2Model, dinov2(), BitImageProcessorPil,
        CROPPED | {"crop_size": {"height": 28, "width": 42}, "image_processor_type": "BitImageProcessor"},
    ),
    "dinov2 classes": Case(
        transformers.Dinov2ForImageClassification, dinov2(**LABELS), BitImageProcessorPil,
        CROPPED | {"crop_size": {"height": 28, "width": 28}, "image_processor_type": "BitImageProcessor"},
    ),
    "mobilevit": Case(
        transformers.MobileViTForImageClassification, mobilevit(**LABELS), MobileViTImageProcessorPil,
        CROPPED | {"image_processor_type": "MobileViTImageProcessor"},
    ),
    "mobilevitv2": Case(
        transformers.MobileViTV2Model, transformers.MobileViTV2Config(width_multiplier=0.25, image_size=64),
        MobileViTImageProcessorPil,
        CROPPED | {"crop_size": {"height": 64, "width": 64}, "image_processor_type": "MobileViTImageProcessor"},
    ),
}  # fmt: skip


def checkpoint_of(folder: Path, name: str) -> Path:
    case = CASES[name]
    write_checkpoint(folder, case.model(case.config), case.image)
    for path in folder.glob("token*"):
        path.unlink()
    return folder
