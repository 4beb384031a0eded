"""Distil: the vision tower is replaced by a small MobileViT that learns the teacher's image tokens and its answers.

Three terms are minimised: the distance of the student's tokens from the teacher's, pooled to the student's grid (the
hints of Romero et al. 2015, "FitNets", arXiv:1412.6550), the divergence of the answers' logits from the teacher's
(Hinton, Vinyals & Dean 2015, arXiv:1503.02531), and the cross-entropy with the labels. The text part of the current
checkpoint stays, and follows with a lower learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.stage import Named, StageConfig, StageInputs, StageSpec, StageWork, TrainingCost, fault_of
from vlm_edge.errors import VlmEdgeError
from vlm_edge.facts import DistillFacts
from vlm_edge.names import near
from vlm_edge.stages.training_config import TrainingConfig
from vlm_edge.students import STUDENTS, StudentConfig
from vlm_edge.zoo import STUDENT_WEIGHTS

if TYPE_CHECKING:
    from torch import nn

    from vlm_edge.families.loading import LoadedCheckpoint
    from vlm_edge.stages.distill_targets import Teacher
    from vlm_edge.stages.training_data import TrainingSet
    from vlm_edge.students.mobilevit import MobileViTStudent

ZOO_PREFIX = "zoo:"
MIN_GRID = 4
"""Where ``output_stride`` is left to the stage, the student keeps at least so many cells along the shorter side."""


class LossWeights(StageConfig):
    """Factors of the three terms; a term with 0 is not computed."""

    features: float = Field(default=1.0, ge=0, le=1e6, description="the teacher's image tokens")
    answers: float = Field(default=1.0, ge=0, le=1e6, description="the teacher's answers")
    labels: float = Field(default=0.2, ge=0, le=1e6, description="the data set's answers")


class Augmentation(StageConfig):
    """What may be done to the training images. Off by default: a shift or a mirror may change an answer."""

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


@dataclass(frozen=True)
class Distillation:
    """All that a distillation starts from: ``loaded`` has the student in its vision tower's place by ``operation``."""

    loaded: LoadedCheckpoint
    operation: dict[str, Any]
    student: Any
    teacher: Teacher
    data: TrainingSet
    rate_scales: dict[str, float]


def prepare(config: DistillConfig, inputs: StageInputs, work: StageWork, samples: int | None) -> Distillation:
    """Put the student into the model, and load so many questions; ``work.facts`` says what the student starts from."""
    import torch

    from vlm_edge.families.loading import load_checkpoint
    from vlm_edge.stages.distill_targets import Teacher
    from vlm_edge.stages.training_data import load_training_set
    from vlm_edge.surgery.replay import SURGERY_NAME, apply_surgery

    assert inputs.teacher is not None
    assert inputs.task is not None
    loaded, dense = load_checkpoint(inputs.source.path), load_checkpoint(inputs.teacher.path)
    model, family = loaded.model, loaded.family
    data = load_training_set(inputs.task, family, loaded.folder, work, limit=samples)
    size = (data.image_processing.height, data.image_processing.width)
    wanted = student_config(config, *size)
    operation = {"op": "replace_vision_tower", "student": config.student, "config": wanted.model_dump(mode="json")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.seed)
        apply_surgery(model, family, [operation], work.out / SURGERY_NAME)
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
    scales = {"": config.text_rate or 1.0, f"{family.vision_tower_path}.": 1.0}
    teacher = Teacher(dense.model, dense.family, size, wanted.grid)
    return Distillation(loaded, operation, student, teacher, data, scales)


def run(config: DistillConfig, inputs: StageInputs, work: StageWork) -> None:
    """Replace and train the vision tower; ``work.facts`` says what it started from and what came of it."""
    from vlm_edge.families.loading import save_checkpoint
    from vlm_edge.stages.distill_targets import hold_out, record_teacher
    from vlm_edge.stages.distill_terms import DistillationTerms, agreement
    from vlm_edge.stages.training import train

    ready = prepare(config, inputs, work, config.samples)
    model, family, teacher, data = ready.loaded.model, ready.loaded.family, ready.teacher, ready.data
    targets = teacher if config.augment.enabled else record_teacher(teacher, data, work)
    kept, held_out = hold_out(data, config.held_out_images)
    terms = DistillationTerms(model, family, targets, config)
    work.facts["training"] = train(
        model, kept, terms, config, work, label="distillation", rate_scales=ready.rate_scales
    )
    work.facts["held_out"] = agreement(model, family, teacher, data, held_out, config.images_per_batch)
    save_checkpoint(work.out, model, ready.loaded, [ready.operation])


def write_untrained(config: DistillConfig, inputs: StageInputs, work: StageWork) -> TrainingCost | None:
    """Write the model with its student before training, and time some steps of a training from random weights."""
    from vlm_edge.stages.distill_forecast import write_untrained

    return write_untrained(config, inputs, work)


def start_student(
    config: DistillConfig, student: MobileViTStudent, wanted: StudentConfig, tower: nn.Module
) -> dict[str, str]:
    """Load shipped weights into ``student`` where the config asks for them; returns what it starts from, and why.

    Raises:
        VlmEdgeError: ``start`` names weights that belong to another student or another teacher.
    """
    from vlm_edge.students.weights import StudentRecord, load_student, read_record, tower_digest

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


def splits(_config: DistillConfig) -> tuple[Literal["train"], ...]:
    """The parts of the task's data that the stage reads."""
    return ("train",)


def faults(config: DistillConfig, named: Named) -> list[tuple[str, str]]:
    """What the model's outline tells: whether its vision tower can be replaced, and the rest be trained."""
    import torch

    from vlm_edge.families.loading import outline_checkpoint
    from vlm_edge.surgery.replay import SURGERY_NAME, apply_surgery

    try:
        outline = outline_checkpoint(named.model)
        outline.family.check_trainable()
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
    version=2,
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
