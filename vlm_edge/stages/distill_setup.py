"""A distillation's start: the student in the vision tower's place, its weights, its teacher and the questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm_edge.core.stage import StageInputs, StageWork
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import LoadedCheckpoint, load_checkpoint
from vlm_edge.stages.distill_config import ZOO_PREFIX, DistillConfig, student_config
from vlm_edge.stages.distill_targets import Teacher
from vlm_edge.stages.training import Course
from vlm_edge.stages.training_data import TrainingSet, load_training_set
from vlm_edge.students import StudentConfig
from vlm_edge.students.mobilevit import MobileViTStudent
from vlm_edge.students.weights import StudentRecord, load_student, read_record, tower_digest
from vlm_edge.surgery.replay import SURGERY_NAME, apply_surgery
from vlm_edge.training.learner import Learner
from vlm_edge.training.table import learner_of
from vlm_edge.zoo import STUDENT_WEIGHTS


@dataclass(frozen=True)
class Distillation:
    """All that a distillation starts from: ``loaded`` has the student in its vision tower's place by ``operation``."""

    loaded: LoadedCheckpoint
    operation: dict[str, Any]
    learner: Learner
    student: Any
    teacher: Teacher
    data: TrainingSet
    course: Course


def prepare(config: DistillConfig, inputs: StageInputs, work: StageWork, samples: int | None) -> Distillation:
    """Put the student into the model, and load so many questions; ``work.facts`` says what the student starts from."""
    assert inputs.teacher is not None
    assert inputs.task is not None
    loaded, dense = load_checkpoint(inputs.source.path), load_checkpoint(inputs.teacher.path)
    model, family = loaded.model, loaded.family
    told = learner_of(dense)
    size = (told.image.height, told.image.width)
    wanted = student_config(config, *size)
    operation = {"op": "replace_vision_tower", "student": config.student, "config": wanted.model_dump(mode="json")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.seed)
        apply_surgery(model, family, [operation], work.out / SURGERY_NAME)
    learner = learner_of(loaded)
    data = load_training_set(inputs.task, learner, work, limit=samples)
    student: Any = model.get_submodule(family.vision_tower_path)
    work.facts["student"] = {
        "name": config.student,
        **wanted.model_dump(mode="json"),
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    work.facts["start"] = start_student(config, student, wanted, dense.model.get_submodule(family.vision_tower_path))
    student.to(memory_format=torch.channels_last)
    if config.text_rate == 0:
        model.requires_grad_(False)
        student.requires_grad_(True)
    for module in learner.kept():
        module.requires_grad_(False)
    scales = {"": config.text_rate or 1.0, f"{family.vision_tower_path}.": 1.0}
    teacher = Teacher(told, size, wanted.grid)
    return Distillation(loaded, operation, learner, student, teacher, data, Course("distillation", rate_scales=scales))


def start_student(
    config: DistillConfig, student: MobileViTStudent, wanted: StudentConfig, tower: nn.Module
) -> dict[str, str]:
    """Load shipped weights into ``student`` where the config asks for them; returns what it starts from, and why.

    Raises:
        VlmEdgeError: ``start`` names weights that belong to another student or another teacher.
    """
    if config.start == "random":
        return {"from": "random", "why": "start: random"}
    fitting = StudentRecord(
        config.student, wanted.model_dump(mode="json"), student.config.hidden_size, tower_digest(tower)
    )
    named = config.start.removeprefix(ZOO_PREFIX)
    for name, entry in STUDENT_WEIGHTS.items():
        if config.start != "auto" and name != named:
            continue
        record = read_record(entry.folder)
        if record == fitting:
            load_student(entry.folder, student)
            return {"from": ZOO_PREFIX + name, "why": "shipped weights, distilled from this teacher's vision tower"}
        if name == named:
            differing = [key for key, value in vars(fitting).items() if getattr(record, key) != value]
            raise VlmEdgeError(
                f"distill.start: {config.start} does not fit: another {' and another '.join(differing)}",
                "use start: auto, which starts from random weights where no shipped ones fit, and more epochs",
            )
    return {"from": "random", "why": "no shipped weights for this student and this teacher's vision tower"}
