"""The runner: recipe -> plan -> store -> measurements -> verdicts -> run record.

Resuming is running again: finished stage runs and measurements are found in the store.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from vlm_edge.core.artifact import Artifact, ArtifactKind
from vlm_edge.core.budget import Verdict, memory_bound, overall
from vlm_edge.core.decided import judge_all
from vlm_edge.core.forecast import forecast
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.plan import VariantPlan, plan_variants
from vlm_edge.core.recipe import OnMiss
from vlm_edge.core.record import OUTCOMES_FOLDER, RunRecord, StageRun, VariantRecord, best_of
from vlm_edge.core.run_folder import RunFolder
from vlm_edge.core.workbench import Measured, Workbench, package_version


class Runner(Workbench):
    """Runs one recipe against one store."""

    def variant(
        self, plan: VariantPlan, baseline: Artifact | None, control: Sequence[Measurement] = ()
    ) -> tuple[VariantRecord, Measured | None]:
        """Make, measure and judge one variant. ``baseline`` is None for the baseline itself.

        ``control`` is what was measured of the baseline, the A/A control among it.
        """
        runs: list[StageRun] = []
        artifact, evaluators, unmeasured = self.teacher, self.toolbox.evaluators, self.unmeasurable
        for step in plan.steps:
            if step.spec.last and unmeasured is not None and not evaluators.compilable(self.recipe.target):
                break
            artifact, run = self.realise(step, artifact)
            runs.append(run)
        made = artifact.kind is ArtifactKind.ENGINE
        emulated = evaluators.emulated(artifact.path) if made and unmeasured is not None else None
        measured = None
        if unmeasured is None or emulated is not None:
            if plan.entry is None:
                self.preflight(plan, artifact)
            measured = self.measure(plan, baseline or artifact, artifact, control)
        return self._record(plan, runs, measured, control, unmeasured, emulated), measured

    def _record(
        self,
        plan: VariantPlan,
        runs: list[StageRun],
        measured: Measured | None,
        control: Sequence[Measurement],
        unmeasured: str | None,
        emulated: str | None = None,
    ) -> VariantRecord:
        """One variant's record; ``unmeasured`` says why its own engine was not measured."""
        measurements, conditions = (measured.measurements, measured.conditions) if measured else ([], {})
        bounds = [*self.bounds(plan), *memory_bound(self.recipe.target, conditions)]
        reasons = {"unmeasurable": unmeasured, "emulated": emulated}
        verdicts = judge_all(bounds, measurements, control=control, conditions=conditions, **reasons)
        return VariantRecord(
            name=plan.name,
            stages=[step.spec.name for step in plan.steps if not step.implied or plan.entry is None],
            runs=runs,
            artifacts={ArtifactKind.CHECKPOINT.value: self.teacher.digest, **{run.kind: run.digest for run in runs}},
            measurements=measurements,
            verdicts=verdicts,
            verdict=overall(verdicts) if verdicts or unmeasured is None else Verdict.NOT_MEASURED,
            unmeasured=unmeasured,
            emulated=emulated,
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
            engine, baseline = self._engine(best or _decided(folder.variants)), self._engine(folder.variants[0])
            record = folder.finish(engine.path if engine is not None else None)
            if engine is not None and baseline is not None and self.unmeasurable is not None:
                self.toolbox.evaluators.complete_kit(folder.folder, baseline.path, self.recipe.task)
            return record

    def _versions(self) -> dict[str, str]:
        names = {name for spec in self.toolbox.stages.values() for name in spec.packages} | {"vlm-edge", "numpy"}
        return {"python": platform.python_version(), **{name: package_version(name) for name in sorted(names)}}


def _decided(variants: Sequence[VariantRecord]) -> VariantRecord:
    """The last variant that was not dropped (the baseline never is)."""
    return [variant for variant in variants if not variant.dropped][-1]
