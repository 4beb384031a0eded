"""The facts of each stage, as they stand in a run record: what the stage measured about its own result.

The models belong to the record's format (:mod:`vlm_edge.core.record`), which holds every record to them. They are
light, so that a report reads them without torch. The facts of a stage that is not in the table are any JSON object.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlm_edge.checked import first_fault


class Facts(BaseModel):
    """Base of all facts: frozen, numbers finite, nothing converted. A key that is not known here is left out."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class Interval(Facts):
    """A number in points (hundredths) with the ends of its 95% interval."""

    low: float
    value: float
    high: float


class Parity(Facts):
    """The worst difference of an exported graph from torch: absolute, and over the output's largest value."""

    max_abs_error: float
    max_relative_error: float


class GraphSize(Facts):
    nodes: int
    size_bytes: int


class HalfComponent(Facts):
    """The worst agreement of a 16-bit graph's outputs with its float32 graph's; of its ``nodes`` that could be 16-bit,
    ``float32`` names those that are not, with the reason."""

    cosine: float
    output: str
    nodes: int
    float32: dict[str, str]


class HalfFacts(Facts):
    """``composed`` counts what all 16-bit graphs together were compared on."""

    dtype: str
    components: dict[str, HalfComponent]
    composed: dict[str, float] = {}


class ExportFacts(Facts):
    """``parity`` and ``graphs`` by component; ``composed`` counts what all graphs together were compared on.

    ``tokens`` are how many of ``generate``'s among it; ``generation_not_followed`` are settings of
    generation_config.json that decoding leaves out. ``half`` is of 16-bit graphs alone.
    """

    parity: dict[str, Parity] = {}
    graphs: dict[str, GraphSize] = {}
    composed: dict[str, float] = {}
    tokens: int = 0
    generation_not_followed: dict[str, str] = {}
    half: HalfFacts | None = None


class Attempt(Facts):
    """One scheme that was tried; ``float_layers`` counts the layers that it leaves float."""

    scheme: str
    cosine: float
    ranges: str | None = None
    float_layers: int = 0


class Agreement(Facts):
    """One output against the float graph's, on held-out samples."""

    cosine: float
    sqnr_db: float


class Operators(Facts):
    """Counts of a graph's operators by type, and the bytes of its constants by dtype."""

    integer: dict[str, int]
    fake_quantized: dict[str, int]
    floating: dict[str, int]
    stray_pairs: int
    constant_bytes: dict[str, int]


class LayerNoise(Facts):
    """One quantized layer, in dB; None where it was not measured. ``sensitivity_drop_pt`` is in points."""

    name: str
    operator: str
    weight_sqnr_db: float | None = None
    input_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    sensitivity_db: float | None = None
    sensitivity_drop_pt: float | None = None


class LayerSensitivity(Facts):
    """One layer quantized alone: the noise, and the loss of the task's metric where it was measured."""

    name: str
    operator: str
    sqnr_db: float
    drop_pt: Interval | None = None
    is_float: bool = Field(default=False, alias="float")


class QuantizedComponent(Facts):
    """The result of one component; ``asked`` is the recipe's scheme, ``scheme`` the one that was accepted."""

    asked: str
    scheme: str
    attempts: list[Attempt] = []
    outputs: dict[str, Agreement] = {}
    float_size_bytes: int | None = None
    size_bytes: int | None = None
    operators: Operators | None = None
    layers: list[LayerNoise] = []
    float_layers: list[str] = []
    float_because: dict[str, str] = {}
    sensitivity: list[LayerSensitivity] = []
    ranges: str | None = None
    corrected_biases: int | None = None
    calibrated_tensors: int | None = None


class MetricSamples(Facts):
    """The samples that the task's metric was measured on."""

    split: str
    images: int
    samples: int


class LeftFloat(Facts):
    """A layer that went back to float for the task's metric; ``without_it``: the drop with it quantized after all."""

    component: str
    name: str
    sqnr_db: float
    drop_pt: Interval | None = None
    without_it: Interval | None = None


class TriedDrop(Interval):
    """The drop with ``left_float`` layers float."""

    left_float: int


class TaskDrop(Facts):
    """The fallback by the task's metric."""

    metric: str
    max_drop_pt: float
    before: Interval
    after: Interval
    left_float: list[LeftFloat]
    tried: list[TriedDrop]


class QuantizeFacts(Facts):
    isa: str
    calibration_samples: int
    held_out_samples: int
    components: dict[str, QuantizedComponent]
    skipped_images: dict[str, str] = {}
    metric_samples: MetricSamples | None = None
    task_drop: TaskDrop | None = None


class Training(Facts):
    """``losses`` holds ``step`` and the mean of each term since the entry before."""

    steps: int
    epochs: float
    images: int
    questions: int
    losses: list[dict[str, float]]


class PruneFacts(Facts):
    """By module path: every head's ``importance``, and ``heads_kept``."""

    importance: dict[str, list[float]]
    heads_kept: dict[str, list[int]]
    parameters_before: int
    parameters: int
    pruned_vs_masked_max_abs_error: float
    calibration_accuracy_dense: float
    calibration_accuracy_pruned: float
    calibration_accuracy_recovered: float | None = None
    recovery: Training | None = None
    skipped_images: dict[str, str] = {}


class Student(Facts):
    name: str
    image_height: int
    image_width: int
    output_stride: int
    patch_size: int
    activation: str
    parameters: int


class Start(Facts):
    """The weights that a student starts from, and why those."""

    source: str = Field(alias="from")
    why: str


class HeldOut(Facts):
    """Agreement of student and teacher on images that were not trained on, with a 95% Wilson interval."""

    images: int
    questions: int
    agreement: float | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    student_accuracy: float | None = None
    teacher_accuracy: float | None = None


class DistillFacts(Facts):
    student: Student
    start: Start
    training: Training
    held_out: HeldOut
    skipped_images: dict[str, str] = {}


class Tuned(Facts):
    """The result of racing an INT8 component's layers in their forms; ``layers`` counts them by form.

    Speeds are those of what was raced: the graph, or the shortest part with layers of every kind.
    """

    layers: dict[str, int] = {}
    races: int | None = None
    shapes_not_tried: int | None = None
    faster_than_untuned: float | None = None
    faster_than_float: float | None = None
    faster_than_float_by_clock: float | None = None
    reverted: str | None = None
    uncalibrated_layers: int = 0
    uncalibrated: str = ""
    float_layers: str | None = None
    reason: str | None = None


class CompiledComponent(Facts):
    """One component's engine against its graph: ``cosine`` for INT8, else ``max_relative_error``, of the worst output.

    ``float_cosine`` and ``graph_float_cosine`` are those of the engine and of the INT8 graph with float arithmetic.
    ``int8_layers`` counts the quantized layers that the engine computes in INT8, ``left_in_float`` names the others,
    where the engine tells.
    """

    size_bytes: int
    integer: bool
    output: str = ""
    cosine: float | None = None
    max_relative_error: float | None = None
    float_cosine: float | None = None
    graph_float_cosine: float | None = None
    nodes: int | None = None
    attentions_found: int | None = None
    attentions_fused: int | None = None
    multiply_adds: int | None = None
    threads: int | None = None
    tuned: Tuned | None = None
    int8_layers: int | None = None
    left_in_float: list[str] = []


class CompileFacts(Facts):
    """``unchecked``: why no component was held against its graph, where this machine builds the engine only, or no more
    than a ``kit`` from which the device builds it."""

    engine: str
    optimize: str
    components: dict[str, CompiledComponent]
    unchecked: str | None = None
    kit: bool = False


FACTS: dict[str, type[Facts]] = {
    "export": ExportFacts,
    "quantize": QuantizeFacts,
    "prune": PruneFacts,
    "distill": DistillFacts,
    "compile": CompileFacts,
}
"""By the name of the stage that writes them."""


def facts_fault(facts: dict[str, Any], kind: type[Facts] | None) -> str | None:
    """The first fault of facts that are not of their kind, with its place; none in what no stage wrote."""
    if kind is None or not facts:
        return None
    try:
        kind.model_validate(facts)
    except ValidationError as error:
        return first_fault(error, kind)
    return None
