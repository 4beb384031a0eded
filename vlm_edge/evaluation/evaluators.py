"""Measure a variant for the runner: accuracy, latency and footprint of its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_edge.backends import builds_on_device, compile_available, engine_available
from vlm_edge.backends.kits import KIT_NAME, read_kit
from vlm_edge.core.measurement import IN_ANY_CASE, LatencyAsked, Measurement, Timed, Until
from vlm_edge.core.stage import Progress, TaskSpec
from vlm_edge.core.target import KIT_ASKED, Target
from vlm_edge.core.toolbox import Evaluators
from vlm_edge.data import load_dataset
from vlm_edge.evaluation.accuracy import EVALUATOR_VERSION, Outcomes, compare, evaluate
from vlm_edge.evaluation.footprint import footprint
from vlm_edge.evaluation.host import lacks_isa
from vlm_edge.evaluation.kit_runs import BUNDLE, complete_kit
from vlm_edge.evaluation.latency import LATENCY_VERSION, LatencySettings, measure_latency
from vlm_edge.evaluation.queries import draw_samples
from vlm_edge.evaluation.regressions import regressions


class EngineEvaluators(Evaluators):
    """Measures compiled engines through the runtime, the very code that answers on the device."""

    def __init__(self, latency: LatencySettings | None = None) -> None:
        self._latency = latency or LatencySettings()

    @property
    def versions(self) -> dict[str, str]:
        return {
            "accuracy": EVALUATOR_VERSION,
            "compare": EVALUATOR_VERSION,
            "latency": f"{LATENCY_VERSION} {self._latency.model_dump_json(exclude={'patience', 'open_seconds'})}",
            "footprint": EVALUATOR_VERSION,
        }

    def unmeasurable(self, target: Target) -> str | None:
        return KIT_ASKED if target.kit else engine_available(target.engine) or lacks_isa(target.isa)

    def compilable(self, target: Target) -> bool:
        builds = compile_available(target.engine) is None or builds_on_device(target.engine)
        return target.kit or (builds and lacks_isa(target.isa) is None)

    def emulated(self, engine: Path) -> str | None:
        by = read_kit(engine)[0].emulated_by if (engine / KIT_NAME).is_file() else None
        return by and f"emulated: {by} ran the kit's graphs"

    def complete_kit(self, run: Path, baseline: Path, task: TaskSpec) -> None:
        if (run / BUNDLE / KIT_NAME).is_file():
            complete_kit(run, baseline, draw_samples(task, self._latency.samples, self._latency.seed))

    def accuracy(self, engine: Path, task: TaskSpec, progress: Progress) -> dict[str, Any]:
        return evaluate(engine, task, progress=progress).to_json()

    def compare(self, baseline: dict[str, Any], candidate: dict[str, Any], seed: int) -> list[Measurement]:
        return compare(Outcomes.from_json(baseline), Outcomes.from_json(candidate), seed)

    def regressions(self, baseline: dict[str, Any], candidate: dict[str, Any], task: TaskSpec) -> list[dict[str, Any]]:
        dataset = load_dataset(task.data, "test")
        return regressions(Outcomes.from_json(baseline), Outcomes.from_json(candidate), dataset)

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
        return measure_latency(
            baseline,
            candidate,
            task,
            threads=target.threads,
            asked=asked,
            settings=self._latency.model_copy(update={"patience": until.patience_s, "open_seconds": until.open_s}),
            is_open=until.is_open,
            progress=progress,
        )

    def footprint(self, baseline: Path, candidate: Path, task: TaskSpec) -> list[Measurement]:
        return footprint(baseline, candidate, task)
