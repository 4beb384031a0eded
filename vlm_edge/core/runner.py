"""The runner: recipe -> plan -> store -> measurements -> verdicts -> run record.

Resuming is running again: finished stage runs and measurements are found in the store.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlm_edge.core.artifact import Artifact, ArtifactKind
from vlm_edge.core.budget import Verdict, is_timed, memory_bound, overall
from vlm_edge.core.decided import judge_all
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.plan import VariantPlan, plan_variants
from vlm_edge.core.recipe import OnMiss
from vlm_edge.core.record import (
    OUTCOMES_FOLDER,
    PREVIOUS_NAME,
    RECORD_NAME,
    REGRESSIONS_NAME,
    RunRecord,
    StageRun,
    VariantRecord,
    best_of,
    read_record,
)
from vlm_edge.core.stage import Level, Progress, StageInputs, StageSpec, StageWork, TrainingCost
from vlm_edge.core.store import key_of, write_json_atomically
from vlm_edge.core.workbench import Measured, Workbench, package_version
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import alone_in, replace_folder

Describe = Callable[[Sequence[VariantRecord], str | None], RunRecord]
"""Makes the record of some variants, and of why it is incomplete (None: it is not)."""


class RunFolder:
    """The folder of a run, ``runs/NAME/``, written as far as the run has got; ``variants`` were measured so far.

    Its record is whole at any moment: that of the run before, moved aside when this one begins, or this one's, marked
    incomplete until it has ended.
    """

    def __init__(self, folder: Path, describe: Describe, measured: Callable[[RunRecord], None] | None) -> None:
        self.folder = folder
        self.variants: list[VariantRecord] = []
        self._describe = describe
        self._measured = measured
        self._regressions: dict[str, list[dict[str, Any]]] = {}

    @contextmanager
    def open(self, progress: Progress) -> Iterator[None]:
        """Have the folder alone, waiting for another run that has it; an exception ends up in the record."""
        waiting = partial(progress.bar, f"waiting for another run of {self.folder.name} to end", None)
        with alone_in(self.folder, waiting):
            self._put_aside()
            try:
                yield
            except BaseException as error:
                text = error.message if isinstance(error, VlmEdgeError) else f"{type(error).__name__}: {error}"
                why = "it was interrupted" if isinstance(error, KeyboardInterrupt) else text.strip()[:1000]
                with suppress(VlmEdgeError):  # a disk that is full: the record says by now that the run did not end
                    if self.variants:
                        self._write(why)
                raise

    def add(self, variant: VariantRecord, outcomes: dict[str, Any] | None, regressions: list[dict[str, Any]]) -> None:
        """Write one more variant; ``outcomes`` is None where nothing was measured."""
        if outcomes is not None:
            write_json_atomically(self.folder / OUTCOMES_FOLDER / f"{variant.name}.json.gz", outcomes)
            self._regressions[variant.name] = regressions
        write_json_atomically(self.folder / REGRESSIONS_NAME, self._regressions)
        self.variants.append(variant)
        record = self._write("it was started, and did not end")
        if self._measured is not None:
            self._measured(record)

    def finish(self, engine: Path | None) -> RunRecord:
        """Write the complete record, with the engine as its bundle."""
        if engine is not None:
            replace_folder(engine, self.folder / "bundle")
        return self._write(None)

    def _write(self, incomplete: str | None) -> RunRecord:
        record = self._describe(self.variants, incomplete)
        write_json_atomically(self.folder / RECORD_NAME, record.model_dump(mode="json"))
        return record

    def _put_aside(self) -> None:
        """Move the record of the run before away; an incomplete one stays until there is more to tell."""
        file = self.folder / RECORD_NAME
        try:
            ended = read_record(file).incomplete is None
        except VlmEdgeError:
            ended = file.exists()
        if ended:
            file.replace(self.folder / PREVIOUS_NAME)
        shutil.rmtree(self.folder / OUTCOMES_FOLDER, ignore_errors=True)


FORECAST_FROM_S = 300.0
"""Shorter trainings than this start without a forecast, which takes from half a minute to a few minutes itself."""

_COST = "training_cost"


def forecast(
    bench: Workbench, plan: VariantPlan, baseline: Artifact | None, variants: Sequence[VariantRecord]
) -> str | None:
    """Tell what the variant's training can win before it starts, where that stage can be forecast and takes long.

    Speed depends on a model's shape, not on what it has learned. So the untrained output goes through the variant's
    graph-level stages and is measured beside the baseline as the variant will be; and a few steps tell the time.

    Args:
        bench: realises the stages and measures.
        plan: the variant, whose last model-level stage would be trained.
        baseline: the baseline's engine.
        variants: those before it, the baseline first.

    Returns:
        The forecast as a sentence if its whole interval misses a bound on a time, else None.
    """
    if plan.entry is None or baseline is None or plan.entry.spec.untrained is None:
        return None
    if bench.toolbox.evaluators.unmeasurable(bench.recipe.target) is not None:
        return None
    *before, step = (each for each in plan.steps if each.spec.level is Level.MODEL)
    source = bench.teacher
    for earlier in before:
        source, _ = bench.realise(earlier, source)
    if bench.store.find(key_of(bench.identity(step, source))) is not None:
        return None
    try:
        engine, run = bench.realise(replace(step, spec=_untrained(step.spec)), source)
        if run.facts.get(_COST) is None:
            return None
        cost = TrainingCost.model_validate(run.facts[_COST])
        if cost.training_s < FORECAST_FROM_S:
            return None
        for lowering in plan.steps[len(before) + 1 :]:
            engine, _ = bench.realise(lowering, engine)
        timed = bench.timed(baseline, engine, (), variants[0].measurements)
    except (VlmEdgeError, ValidationError) as error:
        why = error.message if isinstance(error, VlmEdgeError) else "the store holds no cost of the training"
        bench.progress.remark(f"{plan.name}: no forecast: {why}")
        return None
    told = _sentence(cost, timed.measurements, variants)
    bounds = [bound for bound in bench.bounds(plan) if is_timed(bound.metric)]
    judged = judge_all(bounds, timed.measurements, control=variants[0].measurements, conditions=timed.conditions)
    missed = [f"{each.budget} {each.bound}" for each in judged if each.verdict is Verdict.FAIL]
    if not missed:
        bench.progress.remark(f"{plan.name}: {told}")
        return None
    told = f"{told}; it can't meet {' and '.join(missed)}"
    goes = "it is left out (on_miss: drop)" if plan.entry.on_miss is OnMiss.DROP else "training starts all the same"
    bench.progress.remark(f"{plan.name}: {told}: {goes}")
    return told


def _untrained(spec: StageSpec) -> StageSpec:
    """The stage that writes another's output as it is before training. The times in its facts are this host's."""
    write = spec.untrained
    assert write is not None

    def run(config: object, inputs: StageInputs, work: StageWork) -> None:
        cost = write(config, inputs, work)
        work.facts[_COST] = cost and cost.model_dump(mode="json")

    return replace(spec, name=f"{spec.name}-forecast", run=run, host_bound=True, untrained=None)


def _sentence(cost: TrainingCost, measured: Sequence[Measurement], variants: Sequence[VariantRecord]) -> str:
    """``student X would be 6.1x [5.4, 6.9] at p90, against 1.6x of quantize; training takes about 240 s, ...``."""
    latest = [variant for variant in variants if not variant.dropped][-1]
    speed = "of a speed that the measurement did not give"
    for percentile in ("p90", "p50"):
        metric = f"latency_{percentile}_speedup"
        found, now = ([m for m in each if m.metric == metric] for each in (measured, latest.measurements))
        if found:
            speed = f"{found[0].value:.3g}x [{found[0].low:.3g}, {found[0].high:.3g}] at {percentile}"
            speed += f", against {now[0].value:.3g}x of {latest.name}" if now else ""
            break
    return f"{cost.of} would be {speed}; an epoch takes about {cost.epoch_s:,.0f} s, training {cost.training_s:,.0f} s"


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
        packages = {name for spec in self.toolbox.stages.values() for name in spec.packages} | {"vlm-edge", "numpy"}
        versions = {name: package_version(name) for name in sorted(packages)}

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
                versions={"python": platform.python_version(), **versions},
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


def _decided(variants: Sequence[VariantRecord]) -> VariantRecord:
    """The last variant that was not dropped (the baseline never is)."""
    return [variant for variant in variants if not variant.dropped][-1]
