"""The runner: recipe -> plan -> store -> measurements -> verdicts -> run record.

Resuming is running again: finished stage runs and measurements are found in the store.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm_edge.core.artifact import Artifact, ArtifactKind, checkpoint_artifact
from vlm_edge.core.budget import Bound, Verdict, bounds_of, memory_bound, overall
from vlm_edge.core.decided import IsOpen, judge_all, measure_until_decided, worth_more
from vlm_edge.core.forecast import forecast
from vlm_edge.core.measurement import PATIENCE_S, LatencyAsked, Measurement, Timed, is_kept_form, with_cost
from vlm_edge.core.plan import PlannedRun, Step, VariantPlan, expected_seconds, plan_variants
from vlm_edge.core.recipe import OnMiss, Recipe
from vlm_edge.core.record import OUTCOMES_FOLDER, RunRecord, StageRun, VariantRecord, best_of
from vlm_edge.core.run_folder import RunFolder
from vlm_edge.core.stage import Progress, StageInputs, StageSpec, StageWork
from vlm_edge.core.store import StageRecord, Store, key_of
from vlm_edge.core.toolbox import Toolbox
from vlm_edge.facts import facts_fault
from vlm_edge.files import writing_to


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of one variant. ``outcomes`` and ``regressions`` are JSON."""

    measurements: list[Measurement]
    conditions: dict[str, Any]
    outcomes: dict[str, Any]
    regressions: list[dict[str, Any]]


class Runner:
    """Runs one recipe against one store."""

    def __init__(
        self,
        recipe: Recipe,
        toolbox: Toolbox,
        store: Store,
        progress: Progress,
        *,
        remeasure: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """``remeasure``: take latencies again though the store has them; nothing else depends on the moment.

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
        spec, inputs = step.spec, {"source": source.digest}
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
            identity["target"] = self.recipe.target.decides
        if "metric" in spec.reads and self.toolbox.metric is not None:
            identity["metric"] = self.toolbox.metric.version
        if spec.host_bound:
            identity["host"] = self.host
        return identity

    def realise(self, step: Step, source: Artifact) -> tuple[Artifact, StageRun]:
        """The stage run's artifact: found in the store, or made now."""
        spec, identity = step.spec, self.identity(step, source)
        key = key_of(identity)
        found = self._found(key, spec)
        cached = found is not None
        if found is None:
            with self.store.begin(key) as (out, state):
                found = self._found(key, spec)  # another process may have made it while this one waited for the lock
                if found is None:
                    facts: dict[str, Any] = {}
                    cache = self.store.shared(spec.name)
                    metric = self.toolbox.metric if "metric" in spec.reads else None
                    work = StageWork(out, state, self.recipe.seed, self.progress, facts, cache, metric)
                    inputs = StageInputs(
                        source,
                        self.teacher if "teacher" in spec.reads else None,
                        self.recipe.task if "task" in spec.reads else None,
                        self.recipe.target if "target" in spec.reads else None,
                    )
                    started = time.monotonic()
                    with self.progress.bar(spec.name, None), writing_to(out):
                        spec.run(step.config, inputs, work)
                    found = self.store.seal(key, spec.output, identity, facts, time.monotonic() - started)
        artifact, record = found
        run = StageRun(
            stage=spec.name,
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

    def _found(self, key: str, spec: StageSpec) -> tuple[Artifact, StageRecord] | None:
        """The finished stage run, if the store has it with facts that a run record can hold."""
        found = self.store.find(key)
        return None if found is None or facts_fault(found[1].facts, spec.facts) else found

    def planned(self) -> list[PlannedRun]:
        """Every stage run of the plan, and whether the store has it."""
        rows, records = [], self.store.records()
        for variant in plan_variants(self.recipe, self.toolbox.stages):
            source: Artifact | None = self.teacher
            for step in variant.steps:
                key = key_of(self.identity(step, source)) if source is not None else None
                found = self._found(key, step.spec) if key is not None else None
                seconds = found[1].wall_s if found is not None else expected_seconds(step, records)
                rows.append(PlannedRun(variant.name, step.spec.name, step.implied, key, found is not None, seconds))
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
        version = self.toolbox.evaluators.versions.get(identity["measure"])
        identity = {**identity, "artifacts": [artifact.digest for artifact in artifacts], "evaluator": version}
        key = key_of(identity)
        kept = self.store.measurement(key)
        if (
            kept is not None
            and is_kept_form(identity["measure"], kept["value"])
            and (key in self._taken or not stale(kept["value"]))
        ):
            return kept["value"]
        value = measure()
        self._taken.add(key)
        self.store.keep_measurement(identity, value)
        return value

    def _preflight(self, plan: VariantPlan, engine: Artifact) -> None:
        """Hold the baseline's engine to the user's model on the user's samples, once for each pair of them."""
        if (check := self.toolbox.preflight) is not None:
            trusted = any(getattr(step.config, "trust_remote_code", False) for step in plan.steps)
            given = (self.teacher.path, engine.path, self.recipe.task, self.progress)
            task = f"{self.recipe.task.kind}:{self.data}"
            identity = {"measure": "preflight", "check": check.version, "task": task}
            self._cached(identity, lambda: check(*given, trust_remote_code=trusted), [self.teacher, engine])

    def _outcomes(self, engine: Artifact) -> dict[str, Any]:
        evaluators, task = self.toolbox.evaluators, self.recipe.task
        identity = {"measure": "accuracy", "task": f"{task.kind}:{self.data}"}
        found = self._cached(identity, lambda: evaluators.accuracy(engine.path, task, self.progress), [engine])
        return dict(found)

    def timed(
        self, baseline: Artifact, engine: Artifact, bounds: Sequence[Bound], control: Sequence[Measurement]
    ) -> Timed:
        """One variant's latency: kept, or measured now. The baseline's own is judged by nobody."""
        evaluators, recipe, asked = self.toolbox.evaluators, self.recipe, self._asked()
        judged, price = bounds if engine != baseline else (), recipe.target.price_per_hour

        def priced(kept: Any) -> Timed:
            found = Timed.model_validate(kept)
            return found.model_copy(update={"measurements": with_cost(found.measurements, price)})

        def take(candidate: Path, is_open: IsOpen) -> Timed:
            found = evaluators.latency(
                baseline.path,
                candidate,
                recipe.task,
                recipe.target,
                asked,
                self.progress,
                is_open=lambda so_far: is_open(with_cost(so_far, price)),
                patience_s=self.patience_s,
            )
            return priced(found)

        def measure() -> dict[str, Any]:
            return measure_until_decided(take, baseline.path, engine.path, judged, control).model_dump(mode="json")

        def stale(kept: Any) -> bool:
            return self.remeasure or worth_more(priced(kept), judged, control, self.patience_s)

        identity = {
            "measure": "latency",
            "task": f"{recipe.task.kind}:{self.data}",
            "target": recipe.target.decides,
            "host": self.host,
            "asked": asked.model_dump(mode="json"),
        }
        return priced(self._cached(identity, measure, [baseline, engine], stale))

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
        timed = self.timed(baseline, engine, bounds, control)
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
            if step.spec.last:
                unmeasured = self.toolbox.evaluators.unmeasurable(self.recipe.target)
                if unmeasured is not None:
                    break
            artifact, run = self.realise(step, artifact)
            runs.append(run)
        if plan.entry is None and unmeasured is None:
            self._preflight(plan, artifact)
        measured = None
        if unmeasured is None:
            measured = self.measure(baseline or artifact, artifact, self.bounds(plan), control)
        return self._record(plan, runs, measured, control, unmeasured), measured

    def bounds(self, plan: VariantPlan) -> list[Bound]:
        """Every bound that the variant is judged by: its budgets' and the target's memory."""
        budgets = plan.entry.budgets if plan.entry is not None else self.recipe.budgets
        return [*bounds_of(budgets), *memory_bound(self.recipe.target)]

    def _record(
        self,
        plan: VariantPlan,
        runs: list[StageRun],
        measured: Measured | None,
        control: Sequence[Measurement],
        unmeasured: str | None,
    ) -> VariantRecord:
        """One variant's record; ``unmeasured`` says why there is nothing that was measured."""
        bounds, measurements = self.bounds(plan), measured.measurements if measured else []
        conditions = measured.conditions if measured else {}
        verdicts = judge_all(bounds, measurements, control=control, conditions=conditions, unmeasurable=unmeasured)
        return VariantRecord(
            name=plan.name,
            stages=[step.spec.name for step in plan.steps if not step.implied or plan.entry is None],
            runs=runs,
            artifacts={ArtifactKind.CHECKPOINT.value: self.teacher.digest, **{run.kind: run.digest for run in runs}},
            measurements=measurements,
            verdicts=verdicts,
            verdict=overall(verdicts),
            unmeasured=unmeasured,
            skipped=measured.outcomes.get("skipped", []) if measured else [],
            notes=measured.outcomes.get("notes", []) if measured else [],
            conditions=conditions,
            outcomes=f"{OUTCOMES_FOLDER}/{plan.name}.json.gz" if measured else None,
        )

    def ladder(self, folder: RunFolder) -> None:
        """Add every variant to the run's folder, until the ``run`` mode or an ``on_miss: stop`` ends it."""
        dropped: set[str] = set()
        baseline: Artifact | None = None
        total = len(plan_variants(self.recipe, self.toolbox.stages))
        for index in range(total):
            plan = plan_variants(self.recipe, self.toolbox.stages, without=frozenset(dropped))[index]
            control = folder.variants[0].measurements if folder.variants else ()
            measured = None
            with self.progress.bar(f"variant {index + 1} of {total}: {plan.name}", None):
                missing = forecast(self, plan, baseline, folder.variants)
                if missing is not None and plan.entry is not None and plan.entry.on_miss is OnMiss.DROP:
                    record = self._record(plan, [], None, control, f"not trained: {missing}")
                else:
                    record, measured = self.variant(plan, baseline, control)
            missed = record.verdict is not Verdict.PASS
            if plan.entry is None:
                baseline = self._engine(record)
            elif missed and plan.entry.on_miss is OnMiss.DROP:
                dropped.add(plan.name)
                record = record.model_copy(update={"dropped": True})
            folder.add(record, measured.outcomes if measured else None, measured.regressions if measured else [])
            if plan.entry is not None and (
                plan.entry.on_miss is OnMiss.STOP if missed else self.recipe.run == "until-met"
            ):
                break

    def _engine(self, record: VariantRecord) -> Artifact | None:
        digest = record.artifacts.get(ArtifactKind.ENGINE.value)
        return Artifact(ArtifactKind.ENGINE, digest, self.store.objects / digest) if digest else None

    def run(self, runs: Path, measured: Callable[[RunRecord], None] | None = None) -> RunRecord:
        """Run the ladder and write ``runs/NAME/``: run.json, outcomes/, regressions.json, with an engine bundle/.

        After each variant run.json holds what there is so far, marked incomplete, and ``measured`` is called with it.
        Another run of the same name waits for this one.
        """
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        commit = self.toolbox.source_revision(self.recipe.path)

        def describe(variants: Sequence[VariantRecord], incomplete: str | None) -> RunRecord:
            decided = _decided(variants)
            return RunRecord(
                name=self.recipe.name,
                verdict=decided.verdict if incomplete is None else Verdict.NOT_MEASURED,
                incomplete=incomplete,
                decided_by=decided.name,
                best=best_of(variants) if incomplete is None else None,
                variants=list(variants),
                recipe=self.recipe.resolved(),
                host=self.toolbox.host_record(),
                versions=self._versions(),
                seed=self.recipe.seed,
                commit=commit,
                started=started,
                wall_s=round(time.monotonic() - clock, 3),
            )

        folder = RunFolder(runs / self.recipe.name, describe, measured)
        with self.store.in_use(), folder.open(self.progress):
            self.ladder(folder)
            best = next((each for each in folder.variants if each.name == best_of(folder.variants)), None)
            engine = self._engine(best or _decided(folder.variants))
            return folder.finish(engine.path if engine is not None else None)

    def _versions(self) -> dict[str, str]:
        names = {name for spec in self.toolbox.stages.values() for name in spec.packages} | {"vlm-edge", "numpy"}
        return {"python": platform.python_version(), **{name: package_version(name) for name in sorted(names)}}


def package_version(name: str) -> str:
    """The installed version of a distribution, or ``absent``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _decided(variants: Sequence[VariantRecord]) -> VariantRecord:
    """The last variant that was not dropped (the baseline never is)."""
    return [variant for variant in variants if not variant.dropped][-1]


def _dump(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    return [measurement.model_dump(mode="json") for measurement in measurements]
