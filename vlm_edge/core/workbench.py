"""The workbench: one recipe's stage runs and measurements, each found in the store or made now."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm_edge.core.artifact import Artifact, checkpoint_artifact
from vlm_edge.core.budget import Bound, bounds_of
from vlm_edge.core.decided import IsOpen, asked_by, measure_until_decided, worth_more
from vlm_edge.core.measurement import LatencyAsked, Measurement, Timed, Timing, Until, is_kept_form, with_cost
from vlm_edge.core.plan import PlannedRun, Step, VariantPlan, expected_seconds, plan_variants
from vlm_edge.core.recipe import OnMiss, Recipe
from vlm_edge.core.record import StageRun
from vlm_edge.core.stage import Progress, StageInputs, StageSpec, StageWork
from vlm_edge.core.store import StageRecord, Store, key_of
from vlm_edge.core.toolbox import Toolbox
from vlm_edge.facts import facts_fault
from vlm_edge.files import writing_to

IN_PASSING = 0.2
"""The part of the patience that an open verdict gets where nothing depends on it."""


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of one variant. ``outcomes`` and ``regressions`` are JSON."""

    measurements: list[Measurement]
    conditions: dict[str, Any]
    outcomes: dict[str, Any]
    regressions: list[dict[str, Any]]


class Workbench:
    """One recipe with a toolbox and a store."""

    def __init__(
        self, recipe: Recipe, toolbox: Toolbox, store: Store, progress: Progress, timing: Timing | None = None
    ) -> None:
        self.recipe = recipe
        self.toolbox = toolbox
        self.store = store
        self.progress = progress
        self.timing = timing or Timing()
        self.teacher = checkpoint_artifact(toolbox.resolve_model(recipe.model))
        self.data = toolbox.data_digest(recipe.task)
        self.host = toolbox.host_fingerprint()
        self._taken: set[str] = set()  # keys of what this run has measured

    @property
    def unmeasurable(self) -> str | None:
        """The reason that this host can't run the target's engine, or None."""
        return self.toolbox.evaluators.unmeasurable(self.recipe.target)

    # -- stages -------------------------------------------------------------------------------------------------

    def identity(self, step: Step, source: Artifact) -> dict[str, Any]:
        """Everything that decides a stage run's output, as JSON."""
        spec, inputs, reads = step.spec, {"source": source.digest}, step.spec.reads_with(step.config)
        if "teacher" in reads:
            inputs["teacher"] = self.teacher.digest
        if "task" in reads:
            inputs["task"] = f"{self.recipe.task.kind}:{self.data}"
        identity: dict[str, Any] = {
            "stage": spec.name,
            "version": spec.version,
            "config": step.config.model_dump(mode="json"),
            "inputs": inputs,
            "packages": {name: package_version(name) for name in spec.packages},
            "seed": self.recipe.seed,
        }
        if "target" in reads:
            identity["target"] = self.recipe.target.decides
        if "metric" in reads and self.toolbox.metric is not None:
            identity["metric"] = self.toolbox.metric.version
        if spec.host_bound:
            identity["host"] = self.host
        if spec.last and self.unmeasurable is not None:  # what is made then is no engine that was held to its graphs
            identity["runs_here"] = False
        return identity

    def realise(self, step: Step, source: Artifact) -> tuple[Artifact, StageRun]:
        """The stage run's artifact: found in the store, or made now."""
        spec, identity, reads = step.spec, self.identity(step, source), step.spec.reads_with(step.config)
        key = key_of(identity)
        found = self._found(key, spec)
        cached = found is not None
        if found is None:
            with self.store.begin(key) as (out, state):
                found = self._found(key, spec)  # another process may have made it while this one waited for the lock
                if found is None:
                    facts: dict[str, Any] = {}
                    cache = self.store.shared(spec.name)
                    metric = self.toolbox.metric if "metric" in reads else None
                    work = StageWork(out, state, self.recipe.seed, self.progress, facts, cache, metric)
                    inputs = StageInputs(
                        source,
                        self.teacher if "teacher" in reads else None,
                        self.recipe.task if "task" in reads else None,
                        self.recipe.target if "target" in reads else None,
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

    def preflight(self, plan: VariantPlan, engine: Artifact) -> None:
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
        self,
        baseline: Artifact,
        engine: Artifact,
        bounds: Sequence[Bound],
        control: Sequence[Measurement],
        open_s: float = math.inf,
    ) -> Timed:
        """One variant's latency: kept, or measured now, for at most ``open_s`` seconds while a verdict is open.

        The baseline's own is judged by nobody.
        """
        evaluators, recipe, asked = self.toolbox.evaluators, self.recipe, self._asked()
        judged, price = bounds if engine != baseline else (), recipe.target.price_per_hour
        open_s = min(open_s, self.timing.patience_s)

        def priced(kept: Any) -> Timed:
            found = Timed.model_validate(kept)
            return found.model_copy(update={"measurements": with_cost(found.measurements, price)})

        def take(candidate: Path, is_open: IsOpen) -> Timed:
            until = Until(lambda so_far: is_open(with_cost(so_far, price)), self.timing.patience_s, open_s)
            given = (baseline.path, candidate, recipe.task, recipe.target, asked, self.progress)
            return priced(evaluators.latency(*given, until))

        def measure() -> dict[str, Any]:
            return measure_until_decided(take, baseline.path, engine.path, judged, control).model_dump(mode="json")

        def stale(kept: Any) -> bool:
            return self.timing.remeasure or worth_more(priced(kept), judged, control, open_s)

        identity = {
            "measure": "latency",
            "task": f"{recipe.task.kind}:{self.data}",
            "target": recipe.target.decides,
            "host": self.host,
            "asked": asked.model_dump(mode="json"),
        }
        return priced(self._cached(identity, measure, [baseline, engine], stale))

    def measure(
        self, plan: VariantPlan, baseline: Artifact, engine: Artifact, control: Sequence[Measurement]
    ) -> Measured:
        """Every measurement of one variant against the baseline, whose A/A control is among ``control``.

        Of build kits, which another engine runs here, no time and no size is measured.
        """
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
        timed = Timed(measurements=[])
        if self.unmeasurable is None:
            timed = self.timed(baseline, engine, self.bounds(plan), control, self.open_s(plan))
        sized = self._cached(
            {"measure": "footprint", "task": task},
            lambda: _dump(evaluators.footprint(baseline.path, engine.path, recipe.task)),
            pair,
        )
        before, after = (
            [Measurement.model_validate(row) for row in rows] for rows in (compared["measurements"], sized)
        )
        if self.unmeasurable is not None:
            after = [each for each in after if not each.metric.startswith("size")]
        measurements = [*before, *timed.measurements, *after]
        return Measured(measurements, timed.conditions, outcomes, compared["regressions"])

    def _asked(self) -> LatencyAsked:
        """The times that any budget of the recipe bounds, beside p50 and p90."""
        return asked_by([self.recipe.budgets, *(entry.budgets for entry in self.recipe.stages)])

    def open_s(self, plan: VariantPlan) -> float:
        """The most seconds for a verdict that is open: a fifth of the patience where nothing depends on the verdict.

        That is so where a later variant decides the run, and missing this one's budgets changes nothing.
        """
        entries = self.recipe.stages
        later = entries[next((place + 1 for place, each in enumerate(entries) if each is plan.entry), 0) :]
        decides = (
            self.recipe.run == "until-met"
            or (plan.entry is not None and plan.entry.on_miss is not OnMiss.CONTINUE)
            or all(each.on_miss is OnMiss.DROP for each in later)
        )
        return self.timing.patience_s * (1 if decides else IN_PASSING)

    def bounds(self, plan: VariantPlan) -> list[Bound]:
        """The bounds of the variant's budgets."""
        budgets = plan.entry.budgets if plan.entry is not None else self.recipe.budgets
        return bounds_of(budgets)


def package_version(name: str) -> str:
    """The installed version of a distribution, or ``absent``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _dump(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    return [measurement.model_dump(mode="json") for measurement in measurements]
