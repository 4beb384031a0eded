"""Distil: the vision tower is replaced by a small MobileViT that learns the teacher's image tokens and its answers.

Three terms are minimised: the distance of the student's tokens from the teacher's, pooled to the student's grid (the
hints of Romero et al. 2015, "FitNets", arXiv:1412.6550), the divergence of the answers' logits from the teacher's
(Hinton, Vinyals & Dean 2015, arXiv:1503.02531), and the cross-entropy with the labels. The text part of the current
checkpoint stays, and follows with a lower learning rate.
"""

from __future__ import annotations

from typing import Literal

from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.stage import Named, StageInputs, StageSpec, StageWork, TrainingCost, fault_of
from vlm_edge.errors import VlmEdgeError
from vlm_edge.facts import DistillFacts
from vlm_edge.stages.distill_config import DistillConfig, student_config


def run(config: DistillConfig, inputs: StageInputs, work: StageWork) -> None:
    """Replace and train the vision tower; ``work.facts`` says what it started from and what came of it."""
    from vlm_edge.families.loading import save_checkpoint
    from vlm_edge.stages.distill_setup import prepare
    from vlm_edge.stages.distill_targets import hold_out, record_teacher
    from vlm_edge.stages.distill_terms import DistillationTerms, agreement
    from vlm_edge.stages.training import train

    ready = prepare(config, inputs, work, config.samples)
    model, learner, teacher, data = ready.loaded.model, ready.learner, ready.teacher, ready.data
    targets = teacher if config.augment.enabled else record_teacher(teacher, data, work)
    kept, held_out = hold_out(data, config.held_out_images)
    terms = DistillationTerms(learner, targets, config)
    work.facts["training"] = train(model, kept, terms, config, work, ready.course)
    work.facts["held_out"] = agreement(learner, teacher, data, held_out, config.images_per_batch)
    save_checkpoint(work.out, model, ready.loaded, [ready.operation])


def write_untrained(config: DistillConfig, inputs: StageInputs, work: StageWork) -> TrainingCost | None:
    """Write the model with its student before training, and time some steps of a training from random weights."""
    from vlm_edge.stages.distill_forecast import write_untrained

    return write_untrained(config, inputs, work)


def splits(_config: DistillConfig) -> tuple[Literal["train"], ...]:
    """The parts of the task's data that the stage reads."""
    return ("train",)


def faults(config: DistillConfig, named: Named) -> list[tuple[str, str]]:
    """Faults that the model's outline shows: a vision tower that can't be replaced, a rest that can't be trained."""
    import torch

    from vlm_edge.families.loading import outline_checkpoint
    from vlm_edge.surgery.replay import SURGERY_NAME, apply_surgery
    from vlm_edge.training.table import require_trainable

    try:
        outline = outline_checkpoint(named.model)
        require_trainable(outline.family)
        image = outline.family.image_processing(named.model)
        wanted = student_config(config, image.height, image.width)
        operation = {"op": "replace_vision_tower", "student": config.student, "config": wanted.model_dump(mode="json")}
        with torch.device("meta"):
            apply_surgery(outline.model, outline.family, [operation], named.model / SURGERY_NAME)
    except VlmEdgeError as error:
        return [fault_of(error, "distill", config)]
    return []


SPEC = StageSpec(
    name="distill",
    version=3,
    config=DistillConfig,
    check=faults,
    splits=splits,
    source=ArtifactKind.CHECKPOINT,
    output=ArtifactKind.CHECKPOINT,
    run=run,
    facts=DistillFacts,
    packages=("torch", "transformers"),
    reads=frozenset({"teacher", "task"}),
    untrained=write_untrained,
    summary="Replace a model's vision tower by a small MobileViT student, trained on its features and answers.",
)
