"""The toolbox: the stages, evaluators and checks that core gets from the layers above it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlm_edge.core.measurement import IN_ANY_CASE, LatencyAsked, Measurement, Timed, Until
from vlm_edge.core.recipe import Checks
from vlm_edge.core.stage import Progress, StageSpec, TaskMetric, TaskSpec
from vlm_edge.core.target import Target


class Evaluators(Protocol):
    """Measures variants."""

    @property
    def versions(self) -> Mapping[str, str]:
        """One for each of ``accuracy``, ``compare``, ``latency`` and ``footprint``: part of its measurements' keys."""

    def unmeasurable(self, target: Target) -> str | None:
        """The reason that this host can't run the target's engine, or None."""

    def compilable(self, target: Target) -> bool:
        """Whether this host can compile for the target, or write a build kit, even if it can't run the engine."""

    def emulated(self, engine: Path) -> str | None:
        """The engine that runs a build kit's graphs on this host; None where none can, or the folder is no kit."""

    def complete_kit(self, run: Path, baseline: Path, task: TaskSpec) -> None:
        """Put beside a run's kit all that judging it on the device needs, and the sums of the run's files.

        Nothing, if the run's bundle is no kit.
        """

    def accuracy(self, engine: Path, task: TaskSpec, progress: Progress) -> dict[str, Any]:
        """Per-sample outcomes of one engine on the task's test split, as JSON; ``skipped`` lists left-out samples."""

    def compare(self, baseline: dict[str, Any], candidate: dict[str, Any], seed: int) -> list[Measurement]:
        """Accuracy of the candidate, and its paired drop against the baseline."""

    def regressions(self, baseline: dict[str, Any], candidate: dict[str, Any], task: TaskSpec) -> list[dict[str, Any]]:
        """The samples that the candidate lost most on, worst first, as JSON: both answers, and a small picture."""

    def latency(
        self,
        baseline: Path,
        candidate: Path,
        task: TaskSpec,
        target: Target,
        asked: LatencyAsked,
        progress: Progress,
        until: Until = IN_ANY_CASE,
    ) -> Timed:
        """End-to-end latency of the candidate and its speed-up, alternating with the baseline.

        With ``baseline == candidate`` it is the A/A control: the same engine in two processes. Measuring goes on
        for as long as ``until`` says.
        """

    def footprint(self, baseline: Path, candidate: Path, task: TaskSpec) -> list[Measurement]:
        """Size on disk, parameters and multiply-accumulates of the candidate."""


class Preflight(Protocol):
    """Checks that the baseline is the user's model, before anything is judged."""

    @property
    def version(self) -> str:
        """Part of the key under which a run keeps that it passed: the check's and its packages'."""

    def __call__(
        self, checkpoint: Path, engine: Path, task: TaskSpec, progress: Progress, *, trust_remote_code: bool = False
    ) -> dict[str, Any]:
        """Some of the task's samples through the original and the baseline's engine; what was compared, as JSON.

        Raises:
            VlmEdgeError: they differ.
        """


@dataclass(frozen=True)
class Toolbox:
    """Everything that core needs from the layers above it, as :mod:`vlm_edge.toolbox` puts it together."""

    stages: Mapping[str, StageSpec]
    evaluators: Evaluators
    resolve_model: Callable[[str], Path]
    data_digest: Callable[[TaskSpec], str]
    host_fingerprint: Callable[[], str]
    host_record: Callable[[], dict[str, Any]]
    source_revision: Callable[[Path], str | None]
    metric: TaskMetric | None = None
    preflight: Preflight | None = None
    checks: Checks | None = None
