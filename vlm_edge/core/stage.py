"""A stage: a pure function (config, input artifacts, work) -> output artifact, and what describes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from vlm_edge.core.artifact import Artifact, ArtifactKind
from vlm_edge.core.target import Target


class Level(StrEnum):
    """Where a stage works: MODEL turns a checkpoint into a checkpoint, GRAPH lowers it towards an engine."""

    MODEL = "model"
    GRAPH = "graph"


class StageConfig(BaseModel):
    """Base of every stage's config: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskSpec(BaseModel):
    """``task: {kind: vqa, data: calibration/easy-vqa.yaml}``; ``data`` is resolved to a file before a stage sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    data: Path


class Ticker(Protocol):
    """One progress bar."""

    def advance(self, steps: float = 1.0, *, note: str | None = None) -> None: ...


class Progress(Protocol):
    """Opens progress bars; the CLI draws them on stderr, tests use :class:`SilentProgress`."""

    @contextmanager
    def bar(self, label: str, total: float | None) -> Iterator[Ticker]: ...


class SilentProgress:
    """A progress that draws nothing."""

    class _Ticker:
        def advance(self, steps: float = 1.0, *, note: str | None = None) -> None:
            return

    @contextmanager
    def bar(self, label: str, total: float | None) -> Iterator[Ticker]:
        yield self._Ticker()


@dataclass(frozen=True)
class StageInputs:
    """What a stage reads. A stage sees only what its spec names: the rest is None."""

    source: Artifact
    """CHECKPOINT for model-level stages and export; GRAPHS for quantize and compile."""
    teacher: Artifact | None = None
    """The dense CHECKPOINT that the recipe starts from, for stages that recover or distil."""
    task: TaskSpec | None = None
    target: Target | None = None


@dataclass(frozen=True)
class StageWork:
    """Where a stage writes, and how it reports.

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


@dataclass(frozen=True)
class StageSpec:
    """One row of the table of stages.

    ``version`` is raised whenever the same inputs would give another output. ``packages`` are the distributions whose
    versions change the output. ``reads`` names the optional inputs (``teacher``, ``task``, ``target``) that the stage
    uses; what it does not read is no part of its key. ``host_bound`` marks an output that belongs to this host.
    """

    name: str
    version: int
    level: Level
    config: type[StageConfig]
    output: ArtifactKind
    run: Callable[[Any, StageInputs, StageWork], None]
    packages: tuple[str, ...] = ()
    reads: frozenset[str] = frozenset()
    host_bound: bool = False
    summary: str = ""
