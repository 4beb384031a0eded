"""The settings of a distillation, and the student that they describe. Light: the CLI imports this, not torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from vlm_edge.core.stage import StageConfig
from vlm_edge.names import near
from vlm_edge.stages.training_config import TrainingConfig
from vlm_edge.students import STUDENTS, StudentConfig
from vlm_edge.zoo import STUDENT_WEIGHTS

ZOO_PREFIX = "zoo:"
MIN_GRID = 4
"""Fewest cells along the shorter side of the student's grid, where ``output_stride`` is left to the stage."""


class LossWeights(StageConfig):
    """Factors of the three terms; a term with 0 is not computed."""

    features: float = Field(default=1.0, ge=0, le=1e6, description="the teacher's image tokens")
    answers: float = Field(default=1.0, ge=0, le=1e6, description="the teacher's answers")
    labels: float = Field(default=0.2, ge=0, le=1e6, description="the data set's answers")


class Augmentation(StageConfig):
    """Changes of the training images. Off by default: a shift or a mirror may change an answer."""

    shift: float = Field(default=0.0, ge=0, le=0.5, description="move by up to this part of each side")
    horizontal_flip: bool = Field(default=False, description="mirror half of the images")

    @property
    def enabled(self) -> bool:
        return self.shift > 0 or self.horizontal_flip


class DistillConfig(TrainingConfig):
    """``distill: {student: mobilevit-xxs, epochs: 4}``."""

    epochs: float = Field(default=4.0, gt=0, le=10_000, description="passes over the training images")
    samples: int | None = Field(
        default=None, ge=1, description="use at most so many training questions, drawn by whole images; null: all"
    )
    images_per_batch: int = Field(default=32, ge=1, le=4096)
    learning_rate: float = Field(default=1e-3, gt=0, le=1.0, description="the student's peak, after warm-up")
    student: str = "mobilevit-xxs"
    output_stride: Literal[8, 16, 32] | None = Field(
        default=None, description="pixels per cell of the student's last feature map; null: so that 4x4 cells remain"
    )
    patch_size: Literal[1, 2, 4] = 2
    activation: Literal["silu", "relu", "gelu"] = "silu"
    start: str = Field(
        default="auto", description="random, zoo:NAME (shipped weights), or auto: shipped weights if they fit"
    )
    temperature: float = Field(default=2.0, gt=0, le=100, description="of the answers' logits")
    weights: LossWeights = LossWeights()
    text_rate: float = Field(
        default=0.2, ge=0, le=1, description="the text part's learning rate, times this; 0: frozen"
    )
    augment: Augmentation = Augmentation()
    held_out_images: int = Field(
        default=200, ge=0, le=10_000_000, description="kept from training to measure agreement; at most 10%"
    )

    @field_validator("student")
    @classmethod
    def _known_student(cls, name: str) -> str:
        if name not in STUDENTS:
            raise ValueError(f"unknown student; {near(name, STUDENTS)}")
        return name

    @field_validator("start")
    @classmethod
    def _known_start(cls, start: str) -> str:
        starts = ["auto", "random", *(ZOO_PREFIX + name for name in STUDENT_WEIGHTS)]
        if start not in starts:
            raise ValueError(f"unknown start; {near(start, starts)}")
        return start


def student_config(config: DistillConfig, height: int, width: int) -> StudentConfig:
    """The student for images of ``height`` x ``width`` pixels."""
    fitting = [stride for stride in (32, 16) if min(height, width) >= MIN_GRID * stride]
    return StudentConfig(
        image_height=height,
        image_width=width,
        output_stride=config.output_stride or (fitting[0] if fitting else 8),
        patch_size=config.patch_size,
        activation=config.activation,
    )
