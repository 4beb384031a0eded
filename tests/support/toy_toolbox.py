"""A toy toolbox: stages that write text files and evaluators that read numbers out of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.measurement import IN_ANY_CASE, LatencyAsked, Measurement, Timed, Until
from vlm_edge.core.stage import Progress, StageConfig, StageInputs, StageSpec, StageWork, TaskSpec
from vlm_edge.core.target import Target
from vlm_edge.core.toolbox import Toolbox


class Config(StageConfig):
    strength: float = 1.0
    optimize: str = "full"


def toy_stage(
    name: str, source: ArtifactKind, output: ArtifactKind, log: list[str], implied: dict[str, Any] | None = None
) -> StageSpec:
    """A stage that appends ``NAME(STRENGTH)`` to the model's text."""

    def run(config: Config, inputs: StageInputs, work: StageWork) -> None:
        log.append(name)
        text = (inputs.source.path / "model.txt").read_text()
        (work.out / "model.txt").write_text(f"{text}{name}({config.strength:g})\n")
        if os.environ.get("KILL_IN") == name:
            os.kill(os.getpid(), signal.SIGKILL)

    return StageSpec(name, 1, Config, source, output, run, packages=("numpy",), implied=implied)


class Evaluators:
    """Accuracy falls by a tenth of a point and speed doubles with every stage beyond export and compile."""

    versions: ClassVar = dict.fromkeys(("accuracy", "compare", "latency", "footprint"), "toy-1")

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.missing: str | None = None
        self.builds = False
        self.emulator: str | None = None
        self.drop: set[str] = set()
        self.noises = [0.01]
        self.seconds: float | None = None
        self.peak_mb: float | None = None
        self.on_gpu = False
        self.open_s: list[float] = []

    def unmeasurable(self, target: Target) -> str | None:
        return self.missing

    def compilable(self, target: Target) -> bool:
        return self.missing is None or self.builds

    def emulated(self, engine: Path) -> str | None:
        return self.emulator

    def complete_kit(self, run: Path, baseline: Path, task: TaskSpec) -> None:
        self.log.append(f"kit of {run.name}")

    def accuracy(self, engine: Path, task: TaskSpec, progress: Progress) -> dict[str, Any]:
        self.log.append("accuracy")
        return {"stages": len((engine / "model.txt").read_text().splitlines()) - 3, "skipped": []}

    def compare(self, baseline: dict[str, Any], candidate: dict[str, Any], seed: int) -> list[Measurement]:
        drop = 0.1 * (candidate["stages"] - baseline["stages"])
        return self._kept([_measurement("accuracy_drop_pt", drop, 0.05), _measurement("accuracy", 0.99 - drop, 0.001)])

    def regressions(self, baseline: dict[str, Any], candidate: dict[str, Any], task: TaskSpec) -> list[dict[str, Any]]:
        return [{"id": "q1", "baseline": "red", "candidate": "blue"}] if candidate != baseline else []

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
        self.log.append("latency")
        if candidate != baseline:
            self.open_s.append(until.open_s)
        extra = len((candidate / "model.txt").read_text().splitlines()) - 3
        times = [_measurement("latency_p90_ms", 10 / 2**extra, 0), _measurement("latency_p90_speedup", 2**extra, 0.1)]
        if self.peak_mb is not None:
            times.append(_measurement("peak_rss_mb", self.peak_mb, 2))
        if asked.batch is not None:
            times.append(_measurement("throughput_per_s", 20, 0))
        if 0.99 in asked.percentiles:
            times.append(_measurement("latency_p99_ms", 20, 1))
        if baseline == candidate:
            noise = self.noises.pop(0) if len(self.noises) > 1 else self.noises[0]
            times.append(_measurement("latency_p90_control", 1.0, noise))
        meanwhile = {} if self.seconds is None else {"meanwhile": {"seconds": self.seconds}}
        return Timed(
            measurements=self._kept(times),
            conditions={"load": [0.5], "on_gpu": self.on_gpu, **meanwhile},
        )

    def footprint(self, baseline: Path, candidate: Path, task: TaskSpec) -> list[Measurement]:
        return self._kept([_measurement("size_ratio", 0.5, 0)])

    def _kept(self, measurements: list[Measurement]) -> list[Measurement]:
        return [m for m in measurements if m.metric not in self.drop]


def _measurement(metric: str, value: float, half: float) -> Measurement:
    return Measurement(metric=metric, low=value - half, value=value, high=value + half, n=100, unit="")


def toy_toolbox(model: Path) -> tuple[Toolbox, list[str]]:
    """The toolbox, and the log of what ran."""
    log: list[str] = []
    checkpoint, graphs, engine = ArtifactKind.CHECKPOINT, ArtifactKind.GRAPHS, ArtifactKind.ENGINE
    rows = (
        toy_stage("export", checkpoint, graphs, log, implied={}),
        toy_stage("quantize", graphs, graphs, log),
        toy_stage("prune", checkpoint, checkpoint, log),
        toy_stage("compile", graphs, engine, log, implied={"optimize": "runtime"}),
    )
    stages = {spec.name: spec for spec in rows}
    return (
        Toolbox(
            stages=stages,
            evaluators=Evaluators(log),
            resolve_model=lambda _: model,
            data_digest=lambda _: "data",
            host_fingerprint=lambda: "host",
            host_record=lambda: {"cpu": "toy"},
            source_revision=lambda _: "c0ffee",
        ),
        log,
    )


RECIPE = {
    "name": "toy",
    "model": "zoo:toy",
    "task": {"kind": "vqa", "data": "data.yaml"},
    "target": {"name": "toy", "engine": "onnxruntime"},
    "budgets": {"accuracy": {"max_drop_pt": 1.0}, "latency": {"p90_speedup": 3.0}},
    "stages": [{"export": {}}, {"quantize": {}}, {"prune": {"strength": 0.5}}, {"compile": {}}],
}


def write_recipe(folder: Path, **changes: Any) -> Path:
    """RECIPE with changes, as a file with its data manifest beside it (JSON is YAML)."""
    (folder / "data.yaml").write_text("{}\n")
    path = folder / "toy.yaml"
    path.write_text(json.dumps({**RECIPE, **changes}))
    return path
