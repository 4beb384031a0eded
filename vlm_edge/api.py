"""The library's front door: check, plan and run a recipe, or run one stage on folders.

The command line is a thin shell over this module. It joins core, which knows no stage, with the tables of stages and
evaluators.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlm_edge.checked import faults_of, place_in
from vlm_edge.checkpoints.sources import resolve_model
from vlm_edge.core.artifact import Artifact, ArtifactKind, checkpoint_artifact, digest_folder
from vlm_edge.core.budget import Budgets, Judgement
from vlm_edge.core.gate import (
    Change,
    Gate,
    Tolerances,
    change_bounds,
    check_comparable,
    find_variant,
    gate,
    judge_change,
    judged_percentiles,
    recorded_budgets,
)
from vlm_edge.core.measurement import PATIENCE_S
from vlm_edge.core.plan import PlannedRun
from vlm_edge.core.recipe import Recipe, read_recipe, read_target
from vlm_edge.core.record import PREVIOUS_NAME, RunRecord, read_record
from vlm_edge.core.runner import Runner
from vlm_edge.core.stage import Named, Progress, SilentProgress, StageInputs, StageWork, TaskSpec
from vlm_edge.core.store import Store
from vlm_edge.core.target import Target
from vlm_edge.core.toolbox import Toolbox
from vlm_edge.data import dataset_digest, load_dataset
from vlm_edge.data.dataset import Split
from vlm_edge.data.inspection import shared_images, unreadable_images
from vlm_edge.data.manifest import read_dataset_manifest
from vlm_edge.data.unreadable import check_unreadable
from vlm_edge.errors import RecipeError, VlmEdgeError
from vlm_edge.evaluation.change import Side, change_between, check_bundle, engine_of, joined, measured_again
from vlm_edge.evaluation.evaluators import EngineEvaluators
from vlm_edge.evaluation.host import host_fingerprint, host_record
from vlm_edge.evaluation.resolution import budget_faults
from vlm_edge.evaluation.stage_metric import DrawnMetric
from vlm_edge.files import whole_folder
from vlm_edge.names import near
from vlm_edge.processing.manifest import Transparency, read_manifest
from vlm_edge.stages import STAGES
from vlm_edge.stages.preflight import Preflight, check_images


def shipped_folder() -> Path:
    """The folder that holds ``recipes/`` and ``calibration/``: inside the installed package, or the source tree."""
    package = Path(__file__).parent
    installed = package / "_shipped"
    return installed if installed.is_dir() else package.parent


def toolbox() -> Toolbox:
    """Core's view of the layers above it."""
    return Toolbox(
        stages=STAGES,
        evaluators=EngineEvaluators(),
        resolve_model=resolve_model,
        data_digest=_data_digest,
        host_fingerprint=host_fingerprint,
        host_record=host_record,
        source_revision=source_revision,
        metric=DrawnMetric(),
        preflight=Preflight(),
    )


def _data_digest(task: TaskSpec) -> str:
    splits = sorted(read_dataset_manifest(task.data).splits)
    return "+".join(f"{split}={dataset_digest(task.data, split)}" for split in splits)


def _check_task(task: TaskSpec) -> None:
    manifest = read_dataset_manifest(task.data)
    if manifest.kind != task.kind:
        raise VlmEdgeError(f"{task.data.name} is for the task kind {manifest.kind}, not {task.kind}")
    if "test" not in manifest.splits:
        raise VlmEdgeError(f"{task.data.name} has no test split, so no variant could be judged")
    load_dataset(task.data, "test")


def _check_model(ref: str) -> None:
    from vlm_edge.checkpoints.config import read_config

    read_config(resolve_model(ref))


def check_recipe(path: Path, *, progress: Progress | None = None) -> Recipe:
    """Read a recipe and check all of it without running anything: its keys, model, data and target.

    Raises:
        RecipeError: with every fault and its place.
    """
    recipe = read_recipe(
        path,
        STAGES,
        shipped=shipped_folder(),
        check_model=_check_model,
        check_task=_check_task,
        check_budgets=_check_budgets,
    )
    return replace(recipe, notes=tuple(_check_named(recipe, progress or SilentProgress())))


def _check_named(recipe: Recipe, progress: Progress) -> list[str]:
    """Hold the model and the data against what the stages need of them; returns what is no fault but worth knowing.

    Raises:
        RecipeError: the model can't do the task or what a stage does to it, or the data lack what a stage reads.
    """
    from vlm_edge.checkpoints.config import read_config
    from vlm_edge.families.loading import find_family

    folder, splits = resolve_model(recipe.model), read_dataset_manifest(recipe.task.data).splits
    family = find_family(folder, read_config(folder))
    named = Named(folder, recipe.task, recipe.target, DrawnMetric())
    faults: list[tuple[str, str]] = []
    read: set[Split] = {"test"}
    if recipe.task.kind not in family.task_kinds:
        kinds = ", ".join(family.task_kinds) or "no task"
        faults.append(("task.kind", f"{family.architectures[0]} can't do {recipe.task.kind}; it does: {kinds}"))
    for index, entry in enumerate(recipe.stages):
        place, spec = f"stages[{index}].{entry.stage}", STAGES[entry.stage]
        needed = spec.splits(entry.config)
        absent = [split for split in needed if split not in splits]
        read |= {*needed} - {*absent}
        if absent:
            there = f"{recipe.task.data.name} has: {', '.join(splits)}"
            faults += [(place, f"it reads the split {split}; {there}") for split in absent]
        else:
            faults += [(place_in(place, key), problem) for key, problem in spec.check(entry.config, named)]
    transparency: Transparency = "drop"
    try:
        image = family.image_processing(folder)
        transparency = image.transparency
        check_images(folder, recipe.task, image)
    except VlmEdgeError as error:
        faults.append(("model", error.message))
    notes: list[str] = []
    for split in (each for each in splits if each in read):
        found, skipped = _check_images(recipe.task.data, split, transparency, progress)
        faults += [("task.data", fault) for fault in found]
        notes += skipped
    if faults:
        raise RecipeError([f"{recipe.path.name}: {place}: {problem}" for place, problem in faults])
    return notes


def _check_images(
    manifest: Path, split: Split, transparency: Transparency, progress: Progress
) -> tuple[list[str], list[str]]:
    """Faults of a split's images, read as the model's processor would, and images that will be left out."""
    dataset = load_dataset(manifest, split)
    faults, notes = [], []
    unreadable, total = unreadable_images(dataset, transparency, progress)
    try:
        check_unreadable(manifest.name, split, unreadable, total)
        notes = [f"{manifest.name}: {split}: {name} will be left out: {why}" for name, why in unreadable.items()]
    except VlmEdgeError as error:
        faults.append(error.message)
    twins = shared_images(load_dataset(manifest, "test"), dataset) if split != "test" else []
    if twins:
        faults.append(
            f"{manifest.name}: {split}: {len(twins)} images are also in test, byte for byte, such as {twins[0][0]} and "
            f"{twins[0][1]}; a model is not judged on what it was made with: remove them from one of the two"
        )
    return faults, notes


def _check_budgets(task: TaskSpec, budgets: Budgets) -> list[tuple[str, str]]:
    return budget_faults(load_dataset(task.data, "test"), budgets)


def source_revision(recipe: Path) -> str | None:
    """The git commit of the tree that the recipe lies in, ``-dirty`` with changes; None where there is none."""
    describe = ["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    command = ["git", "-C", str(recipe.resolve().parent), *describe]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def plan_recipe(path: Path, store: Path) -> list[PlannedRun]:
    """Every stage run of the recipe's ladder, and which the store already has."""
    return Runner(check_recipe(path), toolbox(), Store(store), SilentProgress()).planned()


def run_recipe(
    path: Path,
    *,
    store: Path,
    runs: Path,
    progress: Progress | None = None,
    remeasure: bool = False,
    patience_s: float = PATIENCE_S,
    measured: Callable[[RunRecord], None] | None = None,
) -> RunRecord:
    """Run a recipe and write ``runs/NAME/run.json`` and ``runs/NAME/bundle/``.

    What the store already has is not made or measured again, but for latencies: all of them with ``remeasure``, else
    those whose verdict is open after less than ``patience_s`` seconds of measuring. ``measured`` is called after each
    variant with the record as far as it got, which is in ``run.json`` by then, marked incomplete.
    Images that will be left out, and the record of another recipe that will be replaced, are said before it starts.
    """
    bars = progress or SilentProgress()
    recipe = check_recipe(path, progress=bars)
    for note in (*recipe.notes, *_replaced(recipe, runs / recipe.name)):
        bars.remark(f"note: {note}")
    runner = Runner(recipe, toolbox(), Store(store), bars, remeasure=remeasure, patience_s=patience_s)
    return runner.run(runs, measured)


def _replaced(recipe: Recipe, folder: Path) -> list[str]:
    """Tells that ``folder`` holds the run of a recipe of this name with another model, task, target or ladder."""
    try:
        before, now = read_record(folder).recipe, recipe.resolved()
    except VlmEdgeError:
        return []
    parts = {
        "model": (before.get("model"), now["model"]),
        "task": (before.get("task"), now["task"]),
        "target": (before.get("target", {}).get("name"), recipe.target.name),
        "stages": ([each.get("name") for each in before.get("stages", [])], [each.name for each in recipe.stages]),
    }
    other = [part for part, (then, this) in parts.items() if then != this]
    if not other:
        return []
    kept = f"its record is kept as {PREVIOUS_NAME} until the next run"
    return [f"{folder} holds the run of a recipe of this name with other {', '.join(other)}; {kept}"]


def run_stage(
    name: str,
    config: Mapping[str, Any],
    source: str | Path,
    out: Path,
    *,
    teacher: str | Path | None = None,
    data: Path | None = None,
    target: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run one stage on folders, outside any store, and write its result to ``out``.

    Args:
        name: a name of :data:`vlm_edge.stages.STAGES`.
        config: the stage's settings, as a recipe gives them.
        source: a model (zoo name, folder, Hub id) for export, prune and distill; a folder of graphs for the others.
        out: a folder that does not exist yet; it appears whole, or not at all.
        teacher: the dense model, for stages that train; default: ``source``.
        data: a data manifest, for stages that read the task.
        target: a target's name or file, for stages that read it.
        seed: of everything random.
        progress: where bars are drawn.

    Returns:
        The facts that the stage measured about its result.
    """
    if name not in STAGES:
        raise VlmEdgeError(f"unknown stage {name!r}; {near(name, STAGES)}")
    spec = STAGES[name]
    try:
        settings = spec.config.model_validate(config)
    except ValidationError as error:
        faults = faults_of(error, spec.config)
        raise RecipeError([f"{place_in(name, place)}: {message}" for place, message in faults]) from error
    if out.exists():
        raise VlmEdgeError(f"{out}: exists already", "give a folder that does not exist yet, or remove this one")
    graphs = spec.name in ("quantize", "compile")
    artifact = _graphs(Path(source)) if graphs else checkpoint_artifact(resolve_model(str(source)))
    dense = checkpoint_artifact(resolve_model(str(teacher))) if teacher is not None else artifact
    inputs = StageInputs(
        artifact,
        dense if "teacher" in spec.reads else None,
        _needed_task(spec.name, data) if "task" in spec.reads else None,
        find_target(target or "cpu-ort") if "target" in spec.reads else None,
    )
    with whole_folder(out) as out_now, tempfile.TemporaryDirectory(dir=out.parent, prefix=".vlm-edge-") as state:
        metric = DrawnMetric() if "metric" in spec.reads else None
        work = StageWork(out_now, Path(state), seed, progress or SilentProgress(), metric=metric)
        spec.run(settings, inputs, work)
    return work.facts


def find_target(name: str) -> Target:
    """A target by name or file, looked up in the working folder and among those that come with the package."""
    return read_target(name, [Path.cwd(), Path.cwd() / "recipes", shipped_folder()])


def _graphs(folder: Path) -> Artifact:
    read_manifest(folder)
    return Artifact(ArtifactKind.GRAPHS, digest_folder(folder), folder)


def find_task(data: Path) -> TaskSpec:
    """The task of a data manifest, looked up in the working folder and among those that come with the package."""
    candidates = (data, shipped_folder() / data)
    found = next((path.resolve() for path in candidates if path.is_file()), None)
    if found is None:
        raise VlmEdgeError(f"{data}: no such data manifest", "calibration/ holds the ones that come with vlm-edge")
    return TaskSpec(kind=read_dataset_manifest(found).kind, data=found)


def _needed_task(stage: str, data: Path | None) -> TaskSpec:
    if data is None:
        raise VlmEdgeError(f"{stage} needs data", "give a manifest with --data, such as calibration/easy-vqa.yaml")
    return find_task(data)


def gate_run(
    run: Path,
    *,
    recipe: Path | None = None,
    variant: str | None = None,
    against: Path | None = None,
    tolerances: Tolerances | None = None,
    measure: Path | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
) -> tuple[RunRecord, Gate]:
    """Judge a run again from its record, and with ``against`` what it lost against another run.

    Args:
        run: a run's folder, or its record.
        recipe: take the budgets from this recipe; default: those in the record.
        variant: default: the one that decides the run.
        against: another run of the same recipe, as a folder or a record.
        tolerances: how much worse than ``against`` the run may be.
        measure: a data manifest: measure the latency of both engines now, in turns, instead of reading it.
        store: where an engine is looked for that is not in its run's bundle.
        progress: where bars are drawn.

    Raises:
        UsageError: no such variant, nothing to judge, or runs that are not of one recipe.
        VlmEdgeError: a record, the outcomes or the bundle is missing or damaged.
    """
    after = _side(run, variant)
    check_bundle(after.record, after.folder)
    name = after.variant.name
    budgets = recorded_budgets(after.record, name) if recipe is None else _budgets_for(recipe, name)
    changes: list[Judgement] = []
    if against is not None:
        before = _side(against, variant)
        check_comparable(after.record, before.record)
        percentiles = judged_percentiles(budgets)
        change = change_between(before, after, percentiles)
        if measure is not None:
            change = joined([change, _timed_again(before, after, measure, percentiles, store, progress)])
        changes = judge_change(change, change_bounds(tolerances or Tolerances(), percentiles))
    label = str(against) if against is not None else None
    return after.record, gate(after.record, after.variant, budgets, changes, against=label, recorded=recipe is None)


def _side(run: Path, variant: str | None) -> Side:
    record = read_record(run)
    if record.incomplete is not None:
        raise VlmEdgeError(
            f"{record.name}: the run did not end, so there is nothing to judge: {record.incomplete}",
            f"run the recipe again to go on; `vlm-edge report {run}` shows what was measured",
        )
    return Side(record, find_variant(record, variant), run if run.is_dir() else run.parent)


def _timed_again(
    before: Side, after: Side, data: Path, percentiles: list[str], store: Path | None, progress: Progress | None
) -> Change:
    """The slow-down between the engines of two runs, measured now for the later one's target."""
    engines = [engine_of(side, store) for side in (before, after)]
    target = Target.model_validate(after.record.recipe["target"])
    evaluators, bars = toolbox().evaluators, progress or SilentProgress()
    return measured_again(engines[0], engines[1], find_task(data), target, evaluators, percentiles, bars)


def _budgets_for(recipe: Path, variant: str) -> Budgets:
    """The budgets that a recipe has for a variant; its model and data need not be here."""
    read = read_recipe(recipe, STAGES, shipped=shipped_folder())
    return next((entry.budgets for entry in read.stages if entry.name == variant), read.budgets)
