"""The runner: recipe -> plan -> store -> measurements -> verdicts -> run record.

Resuming is running again: finished stage runs and measurements are found in the store.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm_edge.core.artifact import Artifact, ArtifactKind, checkpoint_artifact
from vlm_edge.core.budget import Bound, Verdict, bounds_of, overall
from vlm_edge.core.decided import IsOpen, judge_all, measure_until_decided, worth_more
from vlm_edge.core.measurement import PATIENCE_S, LatencyAsked, Measurement, Timed
from vlm_edge.core.plan import Step, VariantPlan, plan_variants
from vlm_edge.core.recipe import OnMiss, Recipe
from vlm_edge.core.record import (
    OUTCOMES_FOLDER,
    PREVIOUS_NAME,
    RECORD_NAME,
    REGRESSIONS_NAME,
    RunRecord,
    StageRun,
    VariantRecord,
    best_of,
)
from vlm_edge.core.stage import Progress, StageInputs, StageWork
from vlm_edge.core.store import Store, key_of, write_json_atomically
from vlm_edge.core.toolbox import Toolbox
from vlm_edge.files import writing_to


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of one variant. ``outcomes`` and ``regressions`` are JSON."""

    measurements: list[Measurement]
    conditions: dict[str, Any]
    outcomes: dict[str, Any]
    regressions: list[dict[str, Any]]


@dataclass(frozen=True)
class PlannedRun:
    """One stage run of the plan. ``key`` is None while an earlier stage run has yet to give its input."""

    variant: str
    stage: str
    implied: bool
    key: str | None
    cached: bool


class Runner:
    """Runs one recipe against one store."""

    def __init__(
        self,
        recipe: Recipe,
        toolbox: Toolbox,
        store: Store,
        progress: Progress,
        *,
        remeasure: Collection[str] = (),
        patience_s: float = PATIENCE_S,
    ) -> None:
        """``remeasure`` names the measurements that are taken again though the store has them: ``latency``.

        ``patience_s`` is the most that one latency measurement goes on while its verdict is open.
        """
        self.remeasure, self.patience_s = remeasure, patience_s
        self._taken: set[str] = set()  # keys of what this run has measured
        self.recipe = recipe
        self.toolbox = toolbox
        self.store = store
        self.progress = progress
        self.teacher = checkpoint_artifact(toolbox.resolve_model(recipe.model))
        self.data = toolbox.data_digest(recipe.task)
        self.host = toolbox.host_fingerprint()

    # -- stages -------------------------------------------------------------------------------------------------

    def identity(self, step: Step, source: Artifact) -> dict[str, Any]:
        """Everything that decides a stage run's output, as JSON."""
        spec = self.toolbox.stages[step.stage]
        inputs = {"source": source.digest}
        if "teacher" in spec.reads:
            inputs["teacher"] = self.teacher.digest
        if "task" in spec.reads:
            inputs["task"] = f"{self.recipe.task.kind}:{self.data}"
        identity: dict[str, Any] = {
            "stage": spec.name,
            "version": spec.version,
            "config": step.config.model_dump(mode="json"),
            "inputs": inputs,
            "packages": {name: package_version(name) for name in spec.packages},
            "seed": self.recipe.seed,
        }
        if "target" in spec.reads:
            identity["target"] = self.recipe.target.model_dump(
                mode="json", exclude={"name", "description", "price_per_hour"}
            )
        if "metric" in spec.reads and self.toolbox.metric is not None:
            identity["metric"] = self.toolbox.metric.version
        if spec.host_bound:
            identity["host"] = self.host
        return identity

    def realise(self, step: Step, source: Artifact) -> tuple[Artifact, StageRun]:
        """The stage run's artifact: found in the store, or made now."""
        spec = self.toolbox.stages[step.stage]
        identity = self.identity(step, source)
        key = key_of(identity)
        found = self.store.find(key)
        cached = found is not None
        if found is None:
            with self.store.begin(key) as (out, state):
                found = self.store.find(key)  # another process may have made it while this one waited for the lock
                if found is None:
                    facts: dict[str, Any] = {}
                    cache = self.store.shared(step.stage)
                    metric = self.toolbox.metric if "metric" in spec.reads else None
                    work = StageWork(out, state, self.recipe.seed, self.progress, facts, cache, metric)
                    inputs = StageInputs(
                        source,
                        self.teacher if "teacher" in spec.reads else None,
                        self.recipe.task if "task" in spec.reads else None,
                        self.recipe.target if "target" in spec.reads else None,
                    )
                    started = time.monotonic()
                    with self.progress.bar(step.stage, None), writing_to(out):
                        spec.run(step.config, inputs, work)
                    found = self.store.seal(key, spec.output, identity, facts, time.monotonic() - started)
        artifact, record = found
        run = StageRun(
            stage=step.stage,
            config=step.config.model_dump(mode="json"),
            key=key,
            digest=artifact.digest,
            kind=artifact.kind.value,
            cached=cached,
            implied=step.implied,
            wall_s=record.wall_s,
            facts=record.facts,
        )
        return artifact, run

    def planned(self) -> list[PlannedRun]:
        """Every stage run of the plan, and whether the store has it."""
        rows = []
        for variant in plan_variants(self.recipe, self.toolbox.stages):
            source: Artifact | None = self.teacher
            for step in variant.steps:
                key = key_of(self.identity(step, source)) if source is not None else None
                found = self.store.find(key) if key is not None else None
                rows.append(PlannedRun(variant.name, step.stage, step.implied, key, found is not None))
                source = found[0] if found is not None else None
        return rows

    # -- measurements -------------------------------------------------------------------------------------------

    def _cached(
        self,
        identity: dict[str, Any],
        measure: Callable[[], Any],
        artifacts: Sequence[Artifact],
        stale: Callable[[Any], bool] = lambda _: False,
    ) -> Any:
        """A measurement from the store that isn't ``stale``, or taken now and kept there."""
        version = self.toolbox.evaluators.versions[identity["measure"]]
        identity = {**identity, "artifacts": [artifact.digest for artifact in artifacts], "evaluator": version}
        key = key_of(identity)
        kept = self.store.measurement(key)
        if kept is not None and (key in self._taken or not stale(kept["value"])):
            return kept["value"]
        value = measure()
        self._taken.add(key)
        self.store.keep_measurement(identity, value)
        return value

    def _outcomes(self, engine: Artifact) -> dict[str, Any]:
        evaluators, task = self.toolbox.evaluators, self.recipe.task
        identity = {"measure": "accuracy", "task": f"{task.kind}:{self.data}"}
        outcomes: dict[str, Any] = self._cached(
            identity, lambda: evaluators.accuracy(engine.path, task, self.progress), [engine]
        )
        return outcomes

    def _timed(
        self, baseline: Artifact, engine: Artifact, bounds: Sequence[Bound], control: Sequence[Measurement]
    ) -> Timed:
        """One variant's latency: kept, or measured now. The baseline's own is judged by nobody."""
        evaluators, recipe, asked = self.toolbox.evaluators, self.recipe, self._asked()
        judged = bounds if engine != baseline else ()

        def take(candidate: Path, is_open: IsOpen) -> Timed:
            task, target, bars, patience_s = recipe.task, recipe.target, self.progress, self.patience_s
            return evaluators.latency(
                baseline.path, candidate, task, target, asked, bars, is_open=is_open, patience_s=patience_s
            )

        def measure() -> dict[str, Any]:
            return measure_until_decided(take, baseline.path, engine.path, judged, control).model_dump(mode="json")

        def stale(kept: Any) -> bool:
            found = Timed.model_validate(kept)
            return "latency" in self.remeasure or worth_more(found, judged, control, self.patience_s)

        identity = {
            "measure": "latency",
            "task": f"{recipe.task.kind}:{self.data}",
            "target": recipe.target.model_dump(mode="json", exclude={"name", "description"}),
            "host": self.host,
            "asked": asked.model_dump(mode="json"),
        }
        return Timed.model_validate(self._cached(identity, measure, [baseline, engine], stale))

    def measure(
        self, baseline: Artifact, engine: Artifact, bounds: Sequence[Bound], control: Sequence[Measurement]
    ) -> Measured:
        """Every measurement of one variant against the baseline, whose A/A control is among ``control``."""
        evaluators, recipe, pair = self.toolbox.evaluators, self.recipe, [baseline, engine]
        outcomes = self._outcomes(engine)

        def compare() -> dict[str, Any]:
            before = self._outcomes(baseline)
            return {
                "measurements": _dump(evaluators.compare(before, outcomes, recipe.seed)),
                "regressions": evaluators.regressions(before, outcomes, recipe.task),
            }

        task = f"{recipe.task.kind}:{self.data}"
        compared = self._cached({"measure": "compare", "task": task, "seed": recipe.seed}, compare, pair)
        timed = self._timed(baseline, engine, bounds, control)
        sized = self._cached(
            {"measure": "footprint", "task": task},
            lambda: _dump(evaluators.footprint(baseline.path, engine.path, recipe.task)),
            pair,
        )
        before, after = (
            [Measurement.model_validate(row) for row in rows] for rows in (compared["measurements"], sized)
        )
        measurements = [*before, *timed.measurements, *after]
        return Measured(measurements, timed.conditions, outcomes, compared["regressions"])

    def _asked(self) -> LatencyAsked:
        """The times that any budget of the recipe bounds, beside p50 and p90."""
        budgets = [self.recipe.budgets, *(entry.budgets for entry in self.recipe.stages)]
        metrics = {bound.metric for each in budgets for bound in bounds_of(each)}
        tail = (0.99,) if any(metric.startswith("latency_p99") for metric in metrics) else ()
        batches = [each.throughput.batch for each in budgets if each.throughput is not None]
        batch = max(batches, default=1 if "cost_per_1000" in metrics else None)
        return LatencyAsked(percentiles=(0.5, 0.9, *tail), batch=batch, cold_start="cold_start_ms" in metrics)

    # -- variants -----------------------------------------------------------------------------------------------

    def variant(
        self, plan: VariantPlan, baseline: Artifact | None, control: Sequence[Measurement] = ()
    ) -> tuple[VariantRecord, Measured | None]:
        """Make, measure and judge one variant. ``baseline`` is None for the baseline itself.

        ``control`` is what was measured of the baseline, the A/A control among it.
        """
        runs: list[StageRun] = []
        artifact = self.teacher
        unmeasured = None
        for step in plan.steps:
            if step.stage == "compile":
                unmeasured = self.toolbox.evaluators.unmeasurable(self.recipe.target)
                if unmeasured is not None:
                    break
            artifact, run = self.realise(step, artifact)
            runs.append(run)
        bounds = bounds_of(plan.entry.budgets if plan.entry is not None else self.recipe.budgets)
        measured = self.measure(baseline or artifact, artifact, bounds, control) if unmeasured is None else None
        measurements = measured.measurements if measured else []
        conditions = measured.conditions if measured else {}
        verdicts = judge_all(bounds, measurements, control=control, conditions=conditions, unmeasurable=unmeasured)
        record = VariantRecord(
            name=plan.name,
            stages=[step.stage for step in plan.steps if not step.implied or plan.entry is None],
            runs=runs,
            artifacts={ArtifactKind.CHECKPOINT.value: self.teacher.digest, **{run.kind: run.digest for run in runs}},
            measurements=measurements,
            verdicts=verdicts,
            verdict=overall(verdicts),
            unmeasured=unmeasured,
            skipped=measured.outcomes.get("skipped", []) if measured else [],
            conditions=conditions,
            outcomes=f"{OUTCOMES_FOLDER}/{plan.name}.json.gz" if measured else None,
        )
        return record, measured

    def ladder(self, folder: Path) -> list[VariantRecord]:
        """Every variant in order, until the recipe's ``run`` mode or an ``on_miss: stop`` ends it.

        The outcomes of each go to ``folder``, the run's, as it is measured.
        """
        variants: list[VariantRecord] = []
        regressions: dict[str, list[dict[str, Any]]] = {}
        dropped: set[str] = set()
        baseline: Artifact | None = None
        total = len(plan_variants(self.recipe, self.toolbox.stages))
        for index in range(total):
            plan = plan_variants(self.recipe, self.toolbox.stages, without=frozenset(dropped))[index]
            with self.progress.bar(f"variant {index + 1} of {total}: {plan.name}", None):
                record, measured = self.variant(plan, baseline, variants[0].measurements if variants else ())
            if measured is not None:
                write_json_atomically(folder / OUTCOMES_FOLDER / f"{plan.name}.json.gz", measured.outcomes)
                regressions[plan.name] = measured.regressions
            if plan.entry is None:
                baseline = self._engine(record)
                variants.append(record)
                continue
            missed = record.verdict is not Verdict.PASS
            if missed and plan.entry.on_miss is OnMiss.DROP:
                dropped.add(plan.name)
                record = record.model_copy(update={"dropped": True})
            variants.append(record)
            if missed and plan.entry.on_miss is OnMiss.STOP:
                break
            if not missed and self.recipe.run == "until-met":
                break
        write_json_atomically(folder / REGRESSIONS_NAME, regressions)
        return variants

    def _engine(self, record: VariantRecord) -> Artifact | None:
        digest = record.artifacts.get(ArtifactKind.ENGINE.value)
        return Artifact(ArtifactKind.ENGINE, digest, self.store.objects / digest) if digest else None

    def run(self, runs: Path) -> RunRecord:
        """Run the ladder and write ``runs/NAME/``: run.json, outcomes/, regressions.json, with an engine bundle/."""
        with self.store.in_use():
            return self._run(runs)

    def _run(self, runs: Path) -> RunRecord:
        folder = runs / self.recipe.name
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RECORD_NAME).exists():  # an interrupted run must not be read as the run before it
            (folder / RECORD_NAME).replace(folder / PREVIOUS_NAME)
        shutil.rmtree(folder / OUTCOMES_FOLDER, ignore_errors=True)
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        variants = self.ladder(folder)
        decided = [variant for variant in variants if not variant.dropped][-1]
        record = RunRecord(
            name=self.recipe.name,
            verdict=decided.verdict,
            decided_by=decided.name,
            best=best_of(variants),
            variants=variants,
            recipe=self.recipe.resolved(),
            host=self.toolbox.host_record(),
            versions=self._versions(),
            seed=self.recipe.seed,
            commit=self.toolbox.source_revision(self.recipe.path),
            started=started,
            wall_s=round(time.monotonic() - clock, 3),
        )
        engine = self._engine(next((v for v in variants if v.name == record.best), decided))
        if engine is not None:
            replace_folder(engine.path, folder / "bundle")
        write_json_atomically(folder / RECORD_NAME, record.model_dump(mode="json"))
        return record

    def _versions(self) -> dict[str, str]:
        names = {name for spec in self.toolbox.stages.values() for name in spec.packages} | {"vlm-edge", "numpy"}
        return {"python": platform.python_version(), **{name: package_version(name) for name in sorted(names)}}


def package_version(name: str) -> str:
    """The installed version of a distribution, or ``absent``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def replace_folder(source: Path, destination: Path) -> None:
    """Copy ``source`` to ``destination``, which is replaced whole."""
    beside = destination.with_name(f".{destination.name}.new")
    for leftover in (beside, destination.with_name(f".{destination.name}.old")):
        if leftover.exists():
            shutil.rmtree(leftover)
    shutil.copytree(source, beside, copy_function=shutil.copyfile)
    if destination.exists():
        destination.rename(destination.with_name(f".{destination.name}.old"))
    beside.rename(destination)
    shutil.rmtree(destination.with_name(f".{destination.name}.old"), ignore_errors=True)


def _dump(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    return [measurement.model_dump(mode="json") for measurement in measurements]
