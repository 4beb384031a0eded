"""A stage: a pure function (config, input artifacts, work) -> output artifact, and what describes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, Strict

from vlm_edge.checked import CheckedModel
from vlm_edge.core.artifact import Artifact, ArtifactKind
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.target import Target
from vlm_edge.errors import VlmEdgeError
from vlm_edge.facts import Facts


class Level(StrEnum):
    """MODEL: turns a checkpoint into a checkpoint; GRAPH: lowers one towards an engine."""

    MODEL = "model"
    GRAPH = "graph"


class StageConfig(CheckedModel):
    """Base of every stage's config."""


class TaskSpec(CheckedModel):
    """``task: {kind: vqa, data: calibration/easy-vqa.yaml}``; ``data`` is resolved to a file before a stage sees it."""

    kind: str
    data: Annotated[Path, Strict(False)]


class Ticker(Protocol):
    """One progress bar."""

    def advance(self, steps: float = 1.0, *, note: str | None = None) -> None: ...


class Progress(Protocol):
    """Opens progress bars; the CLI draws them on stderr, tests use :class:`SilentProgress`."""

    @contextmanager
    def bar(self, label: str, total: float | None) -> Iterator[Ticker]: ...

    def remark(self, line: str) -> None:
        """Tell the person at the terminal something that they should know of the result."""


class SilentProgress:
    """A progress that draws nothing."""

    class _Ticker:
        def advance(self, steps: float = 1.0, *, note: str | None = None) -> None: ...

    @contextmanager
    def bar(self, label: str, total: float | None) -> Iterator[Ticker]:  # noqa: ARG002
        yield self._Ticker()

    def remark(self, line: str) -> None: ...


class MetricSamples(Protocol):
    """Samples of a task that a stage may measure its own result on: no budget is judged on them."""

    @property
    def split(self) -> str: ...

    @property
    def images(self) -> int: ...

    @property
    def samples(self) -> int: ...

    def outcomes(self, pipeline: Any, progress: Progress) -> Any:
        """A pipeline's answers to all samples."""

    def drop(self, baseline: Any, candidate: Any, seed: int) -> Measurement:
        """``accuracy_drop_pt``: the loss of the task's primary metric from the first outcomes to the second."""


class TaskMetric(Protocol):
    """Gives a stage the task's metric; ``version`` is raised whenever the same pipelines would get other values."""

    @property
    def version(self) -> str: ...

    def samples(
        self, task: TaskSpec, *, max_drop_pt: float | None, images: int | None, without: Collection[Path]
    ) -> MetricSamples:
        """A draw of the task's samples, as many as can show ``max_drop_pt``.

        Args:
            task: whose test split is left alone.
            max_drop_pt: the bound that drops are held against, if any.
            images: how many to draw; default: enough for the bound.
            without: images that are not to be drawn.

        Raises:
            VlmEdgeError: there are too few to show the bound.
        """


@dataclass(frozen=True)
class Named:
    """The model, task and target that a stage's ``check`` holds its settings against: nothing is loaded yet."""

    model: Path
    """The checkpoint's folder."""
    task: TaskSpec
    target: Target
    metric: TaskMetric | None = None
    before: Mapping[str, StageConfig] = field(default_factory=dict)
    """The stages that the recipe lists before this one, by name."""


class TrainingCost(CheckedModel):
    """Time that a training is expected to take on this host, in seconds; ``of`` names what it trains."""

    of: str
    epoch_s: float = Field(ge=0)
    training_s: float = Field(ge=0)


def no_faults(_config: Any, _named: Named) -> list[tuple[str, str]]:
    """The check of a stage that needs no more than its settings' own bounds."""
    return []


def fault_of(error: VlmEdgeError, stage: str, config: StageConfig) -> tuple[str, str]:
    """(setting, what is wrong and what helps) of an error that a stage would end with: ``prune: heads: ...``."""
    message = error.message.removeprefix(f"{stage}: ").removeprefix(f"{stage}.")
    setting, _, problem = message.partition(": ")
    if setting.partition(".")[0] not in type(config).model_fields:
        setting, problem = "", message
    return setting, f"{problem} ({error.hint})" if error.hint else problem


@dataclass(frozen=True)
class StageInputs:
    """The inputs of a stage. It sees only those that its spec names: the rest is None."""

    source: Artifact
    """Of the kind that the spec names."""
    teacher: Artifact | None = None
    """The dense CHECKPOINT that the recipe starts from, for stages that recover or distil."""
    task: TaskSpec | None = None
    target: Target | None = None


@dataclass(frozen=True)
class StageWork:
    """A stage's folders, and its ways to report.

    ``out`` is empty when the stage starts and becomes the artifact when it returns. ``scratch`` survives a kill: a
    stage that takes minutes keeps its checkpoints there and goes on from them. ``facts`` is written into the store's
    record: numbers that the stage measured about its own result (parity with torch, steps done, weights used).
    """

    out: Path
    scratch: Path
    seed: int = 0
    progress: Progress = field(default_factory=SilentProgress)
    facts: dict[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    """A folder of the stage's own for what several of its runs can use; files in it are named by what decides their
    content, and may be gone at any time. None outside a store."""
    metric: TaskMetric | None = None
    """The task's metric, for stages that read it."""


@dataclass(frozen=True)
class StageSpec:
    """One row of the table of stages: all that core, the API and the command line know of a stage.

    ``source`` and ``output`` are the kinds of artifact that it turns one into the other; they say where it stands in a
    recipe (``level``, ``first``, ``last``). ``version`` is raised whenever the same inputs would give another output.
    ``packages`` are the distributions whose versions change the output. ``reads`` names the optional inputs
    (``teacher``, ``task``, ``target``) and the ``metric`` that the stage uses; what it does not read is no part of its
    key. ``optional`` names inputs that it can do without, and is given where its config reads a split of the data.
    ``host_bound`` marks an output that belongs to this host. ``implied`` are the settings with which it runs where a
    recipe lists no stage between its two kinds; None: only where it is listed. ``baseline`` are settings that the
    baseline has whatever a recipe gives. ``facts`` is the model of what it writes into ``work.facts``; None: any JSON
    object. ``summary`` is its help, a sentence.

    ``check`` gives (setting, what is wrong) of all that can be told before anything runs; ``splits`` names the parts of
    the task's data that a config reads. ``untrained``, of a stage that trains for long, writes its output as it is
    before training, and times a few steps: see :mod:`vlm_edge.core.runner`.
    """

    name: str
    version: int
    config: type[StageConfig]
    source: ArtifactKind
    output: ArtifactKind
    run: Callable[[Any, StageInputs, StageWork], None]
    packages: tuple[str, ...] = ()
    reads: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    host_bound: bool = False
    implied: Mapping[str, Any] | None = None
    baseline: Mapping[str, Any] = field(default_factory=dict)
    facts: type[Facts] | None = None
    summary: str = ""
    check: Callable[[Any, Named], list[tuple[str, str]]] = no_faults
    splits: Callable[[Any], tuple[Literal["calibration", "train"], ...]] = lambda _: ()
    untrained: Callable[[Any, StageInputs, StageWork], TrainingCost | None] | None = None

    def reads_with(self, config: StageConfig) -> frozenset[str]:
        """The optional inputs that a run with these settings is given."""
        return self.reads | self.optional if self.splits(config) else self.reads

    @property
    def level(self) -> Level:
        """MODEL for what turns a checkpoint into a checkpoint."""
        return Level.MODEL if self.output is ArtifactKind.CHECKPOINT else Level.GRAPH

    @property
    def first(self) -> bool:
        """True for a graph-level stage that no other comes before: it reads a checkpoint."""
        return self.level is Level.GRAPH and self.source is ArtifactKind.CHECKPOINT

    @property
    def last(self) -> bool:
        """True for a graph-level stage that no other comes after: it makes an engine."""
        return self.output is ArtifactKind.ENGINE
