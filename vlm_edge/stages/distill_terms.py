"""Distillation's loss for one minibatch, and how often student and teacher agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlm_edge.stages.distill_config import DistillConfig
from vlm_edge.stages.distill_targets import Targets, Teacher
from vlm_edge.stages.training import Minibatch, autocast, flushed_denormals, training_device
from vlm_edge.stages.training_data import TrainingSet
from vlm_edge.statistics.intervals import wilson_interval
from vlm_edge.students.augmentation import augment_images
from vlm_edge.training.learner import Learner
from vlm_edge.training.losses import IGNORED, answer_loss, distillation_loss, feature_loss


class DistillationTerms:
    """The weighted terms ``features``, ``answers`` and ``labels`` of a minibatch; those of weight 0 are left out."""

    def __init__(self, learner: Learner, targets: Targets, config: DistillConfig) -> None:
        self._learner, self._targets, self._config = learner, targets, config

    def __call__(self, minibatch: Minibatch) -> dict[str, Tensor]:
        config, weights = self._config, self._config.weights
        batch = minibatch.batch
        if config.augment.enabled:
            settings = config.augment.model_dump()
            changed = augment_images(batch.pixels["pixel_values"], minibatch.rng, **settings)
            batch = replace(batch, pixels={"pixel_values": changed})
        features, logits = self._targets(replace(minibatch, batch=batch))
        pixels = batch.pixels["pixel_values"].contiguous(memory_format=torch.channels_last)
        student_features = self._learner.encode(replace(batch, pixels={"pixel_values": pixels}))
        terms: dict[str, Tensor] = {}
        if weights.features:
            terms["features"] = weights.features * feature_loss(student_features, features)
        if not (weights.answers or weights.labels):
            return terms
        student_logits = self._learner.logits(student_features, batch)
        if weights.answers:
            terms["answers"] = weights.answers * distillation_loss(
                student_logits, logits, temperature=config.temperature, labels=batch.labels
            )
        if weights.labels:
            terms["labels"] = weights.labels * answer_loss(student_logits, batch.labels)
        return terms


@torch.inference_mode()
def agreement(
    learner: Learner, teacher: Teacher, data: TrainingSet, images: Sequence[int], size: int
) -> dict[str, Any]:
    """Share of questions about ``images`` that the student answers as the teacher does, with a 95% Wilson interval, and
    the share that each has right.

    Teacher-forced: an answer counts when the most likely token is right at each of its positions. ``size`` images are
    taken at a time.
    """
    device = training_device()
    learner.to(device)
    learner.model.eval()
    agreeing = student_right = teacher_right = questions = 0
    with flushed_denormals(), autocast(device):
        for start in range(0, len(images), size):
            batch = data.batch(images[start : start + size]).to(device)
            ignored = batch.labels == IGNORED
            _, logits = teacher.ask(batch)
            told = logits.argmax(dim=-1)
            said = learner.logits(learner.encode(batch), batch).argmax(dim=-1)
            agreeing += _whole(said == told, ignored)
            student_right += _whole(said == batch.labels, ignored)
            teacher_right += _whole(told == batch.labels, ignored)
            questions += len(batch.labels)
    learner.model.cpu()
    if not questions:
        return {"images": 0, "questions": 0}
    low, high = wilson_interval(agreeing, questions)
    return {
        "images": len(images),
        "questions": questions,
        "agreement": round(agreeing / questions, 6),
        "agreement_low": round(low, 6),
        "agreement_high": round(high, 6),
        "student_accuracy": round(student_right / questions, 6),
        "teacher_accuracy": round(teacher_right / questions, 6),
    }


def _whole(equal: Tensor, ignored: Tensor) -> int:
    """The questions of which every position that counts is equal."""
    return int((equal | ignored).flatten(1).all(dim=1).sum()) if equal.ndim > 1 else int(equal.sum())
