"""The settings of a training that a stage does (recovery, distillation). Light: the CLI imports this, not torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vlm_edge.core.stage import StageConfig


class TrainingConfig(StageConfig):
    """AdamW with linear warm-up and cosine decay to zero; a batch is some images with their questions."""

    epochs: float = Field(
        default=1.0, gt=0, le=10_000, description="passes over the training images; fractions are fine"
    )
    images_per_batch: int = Field(default=16, ge=1, le=4096)
    questions_per_image: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="a random choice of so many questions an image and epoch; null: all of them",
    )
    learning_rate: float = Field(default=5e-4, gt=0, le=1.0, description="the peak, after warm-up")
    weight_decay: float = Field(default=0.01, ge=0, le=1.0, description="on matrices; biases and norms get none")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="fraction of the steps with a rising learning rate")
    clip_norm: float = Field(default=1.0, gt=0, le=1e6, description="the gradient's norm is clipped to this")
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="keep a moving average of the weights, and end with it"
    )
    precision: Literal["auto", "float32"] = Field(
        default="auto", description="auto: bfloat16 autocast where the processor multiplies it natively"
    )


class Recovery(TrainingConfig):
    """The training after the cut: the teacher's answers (KL) and the data set's (cross-entropy)."""

    epochs: float = Field(default=2.0, gt=0, le=10_000)
    samples: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="use at most so many training questions, drawn by whole images; null: all",
    )
    train: Literal["text", "all"] = Field(
        default="text",
        description="text: the vision tower stays as it is, and each image is encoded once; all: train everything",
    )
    temperature: float = Field(default=2.0, gt=0, le=100, description="softens both answers before they are compared")
    teacher_weight: float = Field(default=0.7, ge=0, le=1, description="of the teacher's answers; the rest is labels'")
