"""Distillation before it starts: the model with its untrained student, and the time that its training would take."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vlm_edge.core.stage import StageInputs, StageWork, TrainingCost
from vlm_edge.data import load_dataset
from vlm_edge.families.loading import save_checkpoint
from vlm_edge.stages.distill_config import DistillConfig
from vlm_edge.stages.distill_setup import prepare
from vlm_edge.stages.distill_targets import RecordedTeacher, record_teacher
from vlm_edge.stages.distill_terms import DistillationTerms
from vlm_edge.stages.training import (
    IMAGES_PER_PASS,
    autocast,
    fastest,
    flushed_denormals,
    time_steps,
    training_device,
)
from vlm_edge.students.mobilevit import MobileViTStudent


def write_untrained(config: DistillConfig, inputs: StageInputs, work: StageWork) -> TrainingCost | None:
    """Write the model with its student before training, and time some steps on about one batch of the images.

    Returns None for a student that starts from shipped weights: those are of a student that was worth its training.
    """
    assert inputs.task is not None
    samples = load_dataset(inputs.task.data, "train", limit=config.samples).samples
    images = len({sample.image for sample in samples})
    few = math.ceil(config.images_per_batch * len(samples) / images)
    ready = prepare(config, inputs, work, min(few, len(samples)))
    loaded, data, teacher = ready.loaded, ready.data, ready.teacher
    if work.facts["start"]["from"] != "random":
        save_checkpoint(work.out, loaded.model, loaded, [ready.operation])
        return None
    shown = data.batch(data.usable_images[: config.images_per_batch]).to(training_device())
    settle(ready.student, shown.pixels["pixel_values"].cpu(), teacher.ask(shown)[0].cpu())
    save_checkpoint(work.out, loaded.model, loaded, [ready.operation])

    targets = teacher if config.augment.enabled else record_teacher(teacher, data, work, images=images)
    asked = data.usable_images[:IMAGES_PER_PASS]
    batch = data.batch(asked).to(training_device())
    with flushed_denormals(), autocast(training_device()):
        asked_s = fastest(lambda: teacher.ask(batch)[1].cpu(), 3) / len(asked)
    terms = DistillationTerms(ready.learner, targets, config)
    image_s = time_steps(loaded.model, data, terms, config, work.seed, ready.course)
    epoch_s = image_s * (images - min(config.held_out_images, images // 10))
    once_s = asked_s * images if isinstance(targets, RecordedTeacher) else 0.0
    return TrainingCost(of=f"student {config.student}", epoch_s=epoch_s, training_s=once_s + config.epochs * epoch_s)


@torch.no_grad()
def settle(student: MobileViTStudent, pixels: Tensor, features: Tensor) -> None:
    """Give a random student the statistics of a trained one, in place: it then does the work of one.

    Each BatchNorm takes those of ``pixels`` (images, 3, height, width). Where ``features``, the teacher's of the same
    images, are image tokens (images, tokens, hidden), the student's get their mean: the text part is shown tokens that
    it knows, and answers about as long as to the teacher. Answers to random tokens may go on to the last token allowed.
    """
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # all of the new, none of the old
    with flushed_denormals():
        student.train()(pixels)
        tokens = student.eval()(pixels).last_hidden_state
    if features.shape[1:] == tokens.shape[1:]:
        norm, scale = student.post_layernorm, features.std(dim=(0, 1))
        norm.weight.copy_(scale)
        norm.bias.copy_(features.mean(dim=(0, 1)) - scale * tokens.mean(dim=(0, 1)))
