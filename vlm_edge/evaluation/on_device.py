"""Build the engine of a build kit on the device that runs it, check it against the kit's golden runs, and judge it."""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_edge.backends import backend, engine_version, load_engine, require_engine
from vlm_edge.backends.kits import KIT_NAME, GoldenRuns, check_golden, kit_form, read_kit
from vlm_edge.core.artifact import ArtifactKind, digest_folder
from vlm_edge.core.budget import Budgets, Verdict, bounds_of, memory_bound, overall
from vlm_edge.core.decided import IsOpen, asked_by, judge_all, measure_until_decided
from vlm_edge.core.gate import recorded_budgets, recorded_target
from vlm_edge.core.measurement import Measurement, Timed, with_cost
from vlm_edge.core.plan import BASELINE
from vlm_edge.core.record import OUTCOMES_FOLDER, RECORD_NAME, RunRecord, StageRun, VariantRecord, best_of
from vlm_edge.core.stage import Progress, SilentProgress, TaskSpec
from vlm_edge.core.store import key_of, write_json_atomically
from vlm_edge.core.target import Target
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import Outcomes, compare, evaluate
from vlm_edge.evaluation.footprint import footprint
from vlm_edge.evaluation.host import host_fingerprint, host_record
from vlm_edge.evaluation.kit_runs import BUNDLE, KitRun, read_kit_run
from vlm_edge.evaluation.latency import Bench, LatencySettings, measure_latency
from vlm_edge.files import whole_folder
from vlm_edge.processing.manifest import EngineInfo, used_files, write_manifest

NO_QUERIES = "the kit is of no run, so it has no queries to measure its times with: give --data"


@dataclass(frozen=True)
class DeviceSettings:
    """``task``: data of the device, to measure accuracy with; None: only what travels in the kit."""

    task: TaskSpec | None = None
    latency: LatencySettings = field(default_factory=LatencySettings)


def build_engine(folder: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Build a kit's engine into ``out``, a folder that is there and empty, and hold it to the golden runs.

    Returns:
        The facts of the stage compile.

    Raises:
        VlmEdgeError: the kit was altered or is damaged, its engine can't run here, or strays from the golden runs.
    """
    kit, manifest = read_kit(folder)
    require_engine(kit.engine)
    form, options = kit_form(kit.engine), dict(backend(kit.engine).options)
    rows, facts = {}, {}
    graphs = {row.file for row in manifest.components.values()}
    for name in set(used_files(manifest)) - graphs:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, out / name)
    with progress.bar("build", len(manifest.components)) as ticker:
        for name, component in manifest.components.items():
            part = kit.components[name]
            rows[name] = form.build(folder / component.file, component, part.profile, out)
            path = out / rows[name].file
            engine = load_engine(kit.engine, path, rows[name], kit.threads, options)
            size = sum(file.stat().st_size for file in out.glob(f"{path.stem}.*"))
            agreement = check_golden(name, engine, GoldenRuns(folder, part, component))
            facts[name] = {"size_bytes": size, "integer": part.integer, **agreement}
            ticker.advance(note=name)
    info = EngineInfo(name=kit.engine, version=engine_version(kit.engine), threads=kit.threads, options=options)
    write_manifest(out, manifest.model_copy(update={"components": rows, "engine": info}))
    return {"engine": kit.engine, "optimize": "runtime", "components": facts}


def compile_on_device(
    source: Path, out: Path, settings: DeviceSettings | None = None, progress: Progress | None = None
) -> RunRecord:
    """Build, check, measure and judge; ``out`` becomes a run's folder with its record and the engine as its bundle.

    Args:
        source: a kit, or a run's folder with one, whose budgets are then judged.
        out: a folder that does not exist yet; it appears whole, or not at all.
        settings: where the accuracy is measured, and how long the latency.
        progress: where bars are drawn.

    Raises:
        VlmEdgeError: as :func:`build_engine`, or the engine can't be measured.
    """
    if out.exists():
        raise VlmEdgeError(f"{out}: exists already", "give a folder that does not exist yet, or remove this one")
    run = None if (source / KIT_NAME).is_file() else read_kit_run(source)
    settings, bars = settings or DeviceSettings(), progress or SilentProgress()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".vlm-edge-") as scratch, whole_folder(out) as folder:
        record = _Device(source, run, folder, Path(scratch), settings, bars).record()
        write_json_atomically(folder / RECORD_NAME, record.model_dump(mode="json"))
    return record


class _Device:
    """One kit on this host: its engine in ``out``, and its baseline's in ``scratch`` where it is a run's."""

    def __init__(
        self, source: Path, run: KitRun | None, out: Path, scratch: Path, settings: DeviceSettings, progress: Progress
    ) -> None:
        self.started, self.clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        self.run, self.settings, self.progress, self.out = run, settings, progress, out
        self.kits = {out / BUNDLE: source if run is None else run.kit}
        if run is not None and run.variant.name != BASELINE:
            self.kits[scratch / BASELINE] = run.baseline
        self.engine, self.baseline = next(iter(self.kits)), [*self.kits][-1]
        if run is None:
            kit = read_kit(source)[0]
            self.name, self.budgets = source.resolve().name, Budgets()
            self.target = Target(name=kit.target, engine=kit.engine, threads=kit.threads)
        else:
            self.name, self.budgets = run.record.name, recorded_budgets(run.record, run.variant.name)
            self.target = recorded_target(run.record)

    def record(self) -> RunRecord:
        """Build, measure and judge."""
        built = {folder: self._built(folder, kit) for folder, kit in self.kits.items()}
        outcomes = self._outcomes()
        times = self._times()
        control = times[self.baseline].measurements if times else []
        variants = [
            self._variant(folder, built[folder], outcomes, times.get(folder), control)
            for folder in dict.fromkeys((self.baseline, self.engine))
        ]
        for variant, measured in zip(reversed(variants), outcomes.values(), strict=False):
            write_json_atomically(self.out / str(variant.outcomes), measured.to_json())
        before, host = self.run and self.run.record, host_record()
        alone = {"name": self.name, "target": self.target.model_dump(mode="json"), "budgets": {}, "stages": []}
        return RunRecord(
            name=self.name,
            verdict=variants[-1].verdict,
            decided_by=variants[-1].name,
            best=best_of(variants),
            variants=variants,
            recipe=before.recipe if before else alone,
            host=host,
            versions={"python": platform.python_version(), **host["packages"]},
            seed=before.seed if before else 0,
            commit=before.commit if before else None,
            started=self.started,
            wall_s=round(time.monotonic() - self.clock, 3),
        )

    def _built(self, folder: Path, kit: Path) -> StageRun:
        began = time.monotonic()
        folder.mkdir()
        facts = build_engine(kit, folder, self.progress)
        identity = {"stage": "compile", "config": {"kit": digest_folder(kit)}, "host": host_fingerprint()}
        return StageRun(
            stage="compile",
            config=identity["config"],
            key=key_of(identity),
            digest=digest_folder(folder),
            kind=ArtifactKind.ENGINE.value,
            cached=False,
            implied=False,
            wall_s=round(time.monotonic() - began, 3),
            facts=facts,
        )

    def _outcomes(self) -> dict[Path, Outcomes]:
        """Each engine's outcomes on the device's data; nothing without data."""
        task = self.settings.task
        return {} if task is None else {each: evaluate(each, task, progress=self.progress) for each in self.kits}

    def _origin(self, folder: Path) -> VariantRecord:
        """The variant of the run that an engine's kit is of."""
        assert self.run is not None
        return self.run.variant if folder == self.engine else self.run.record.variants[0]

    def _times(self) -> dict[Path, Timed]:
        """Latency of each engine, the baseline's with the A/A control; nothing without queries."""
        queries = self.settings.task or (self.run.samples if self.run else None)
        if queries is None:
            return {}
        bench = Bench(queries, self.target.threads, asked_by([self.budgets]), self.settings.latency)
        bounds, baseline = bounds_of(self.budgets), self.baseline if self.run else None

        def take(folder: Path, is_open: IsOpen) -> Timed:
            timed = measure_latency(baseline, folder, bench, progress=self.progress, is_open=is_open)
            priced = with_cost(timed.measurements, self.target.price_per_hour)
            return timed.model_copy(update={"measurements": priced})

        found = {self.baseline: take(self.baseline, lambda _: False)}
        if self.engine != self.baseline:
            control = found[self.baseline].measurements
            found[self.engine] = measure_until_decided(take, self.baseline, self.engine, bounds, control)
        return found

    def _variant(
        self,
        folder: Path,
        built: StageRun,
        outcomes: Mapping[Path, Outcomes],
        timed: Timed | None,
        control: list[Measurement],
    ) -> VariantRecord:
        origin = self._origin(folder) if self.run else None
        emulated = (
            f"{origin.emulated or 'measured elsewhere'}; --data measures it here" if origin and not outcomes else None
        )
        seed = self.run.record.seed if self.run else 0
        parts = [
            origin.measurements if origin else [],
            compare(outcomes[self.baseline], outcomes[folder], seed) if outcomes else [],
            timed.measurements if timed else [],
            footprint(self.baseline, folder),
        ]
        measurements = list({each.metric: each for part in parts for each in part}.values())
        conditions = timed.conditions if timed else {}
        unmeasured = None if timed else NO_QUERIES
        bounds = [*bounds_of(self.budgets), *memory_bound(self.target, conditions)]
        reasons = {"unmeasurable": unmeasured, "emulated": emulated}
        verdicts = judge_all(bounds, measurements, control=control, conditions=conditions, **reasons)
        runs = [*(origin.runs[:-1] if origin else []), built]
        name = origin.name if origin else self.name
        return VariantRecord(
            name=name,
            stages=origin.stages if origin else ["compile"],
            runs=runs,
            artifacts={**(origin.artifacts if origin else {}), built.kind: built.digest},
            measurements=measurements,
            verdicts=verdicts,
            verdict=overall(verdicts) if verdicts or unmeasured is None else Verdict.NOT_MEASURED,
            unmeasured=unmeasured,
            emulated=emulated,
            conditions=conditions,
            outcomes=f"{OUTCOMES_FOLDER}/{name}.json.gz" if outcomes else None,
        )
