"""The library's front door: check, plan and run a recipe, or run one stage on folders.

The command line is a thin shell over this module. Every function works on the stages and evaluators of a
:class:`~vlm_edge.core.toolbox.Toolbox`: the package's own, or another that the caller hands in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from pydantic import ValidationError

from vlm_edge.checked import faults_of, place_in
from vlm_edge.core.artifact import Artifact, ArtifactKind, checkpoint_artifact, digest_folder
from vlm_edge.core.budget import Judgement
from vlm_edge.core.gate import (
    Gate,
    Tolerances,
    change_bounds,
    check_comparable,
    find_variant,
    gate,
    judge_change,
    judged_percentiles,
    recorded_budgets,
    recorded_target,
)
from vlm_edge.core.measurement import Timing
from vlm_edge.core.plan import PlannedRun
from vlm_edge.core.recipe import Recipe, read_recipe, read_target
from vlm_edge.core.record import PREVIOUS_NAME, RunRecord, read_record
from vlm_edge.core.runner import Runner
from vlm_edge.core.stage import Progress, SilentProgress, StageInputs, StageSpec, StageWork, TaskSpec
from vlm_edge.core.store import Store
from vlm_edge.core.target import Target
from vlm_edge.core.toolbox import Toolbox
from vlm_edge.data.manifest import read_dataset_manifest
from vlm_edge.errors import RecipeError, VlmEdgeError
from vlm_edge.evaluation.change import Side, change_between, check_bundle, engine_of, joined, measured_again
from vlm_edge.files import whole_folder
from vlm_edge.names import near
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.toolbox import default_toolbox


def shipped_folder() -> Path:
    """The folder that holds ``recipes/`` and ``calibration/``: inside the installed package, or the source tree."""
    package = Path(__file__).parent
    installed = package / "_shipped"
    return installed if installed.is_dir() else package.parent


def check_recipe(path: Path, *, progress: Progress | None = None, toolbox: Toolbox | None = None) -> Recipe:
    """Read a recipe and check all of it without running anything: its keys, model, data and target.

    Args:
        path: the recipe's file.
        progress: where bars are drawn.
        toolbox: stages and evaluators of your own; default: the package's.

    Raises:
        RecipeError: with every fault and its place.
    """
    tools = toolbox or default_toolbox()
    recipe = read_recipe(path, tools.stages, shipped=shipped_folder(), checks=tools.checks)
    if tools.checks is None:
        return recipe
    return replace(recipe, notes=tuple(tools.checks.fit(recipe, progress or SilentProgress())))


def plan_recipe(path: Path, store: Path, *, toolbox: Toolbox | None = None) -> list[PlannedRun]:
    """Every stage run of the recipe's ladder, and which the store already has."""
    tools = toolbox or default_toolbox()
    return Runner(check_recipe(path, toolbox=tools), tools, Store(store), SilentProgress()).planned()


def run_recipe(
    path: Path,
    *,
    store: Path,
    runs: Path,
    progress: Progress | None = None,
    timing: Timing | None = None,
    measured: Callable[[RunRecord], None] | None = None,
    toolbox: Toolbox | None = None,
) -> RunRecord:
    """Run a recipe and write ``runs/NAME/run.json`` and ``runs/NAME/bundle/``.

    What the store already has is not made or measured again, but for latencies: all of them with ``timing.remeasure``,
    else those whose verdict is open after less than ``timing.patience_s`` seconds of measuring. ``measured`` is called
    after each variant with the record as far as it got, which is in ``run.json`` by then, marked incomplete.
    Images that will be left out, and the record of another recipe that will be replaced, are said before it starts.
    """
    bars, tools = progress or SilentProgress(), toolbox or default_toolbox()
    recipe = check_recipe(path, progress=bars, toolbox=tools)
    for note in (*recipe.notes, *_replaced(recipe, runs / recipe.name)):
        bars.remark(f"note: {note}")
    runner = Runner(recipe, tools, Store(store), bars, timing)
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


class StageReads(TypedDict, total=False):
    """The inputs of :func:`run_stage` beside its source, which describes them; a stage takes those of its spec."""

    teacher: str | Path
    data: Path
    target: str


def run_stage(
    name: str,
    config: Mapping[str, Any],
    source: str | Path,
    out: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    toolbox: Toolbox | None = None,
    **reads: Unpack[StageReads],
) -> dict[str, Any]:
    """Run one stage on folders, outside any store, and write its result to ``out``.

    Args:
        name: a name of :data:`vlm_edge.stages.STAGES`.
        config: the stage's settings, as a recipe gives them.
        source: a model (zoo name, folder, Hub id) for export, prune and distill; a folder of graphs for the others.
        out: a folder that does not exist yet; it appears whole, or not at all.
        seed: of everything random.
        progress: where bars are drawn.
        toolbox: stages of your own; default: the package's.
        reads: ``teacher``, the dense model, for stages that train (default: ``source``); ``data``, a data manifest, for
            stages that read the task, or can; ``target``, a target's name or file, for stages that read it (default:
            ``cpu-ort``).

    Returns:
        The facts that the stage measured about its result.
    """
    tools = toolbox or default_toolbox()
    if name not in tools.stages:
        raise VlmEdgeError(f"unknown stage {name!r}; {near(name, tools.stages)}")
    spec = tools.stages[name]
    try:
        settings = spec.config.model_validate(config)
    except ValidationError as error:
        faults = faults_of(error, spec.config)
        raise RecipeError([f"{place_in(name, place)}: {message}" for place, message in faults]) from error
    if out.exists():
        raise VlmEdgeError(f"{out}: exists already", "give a folder that does not exist yet, or remove this one")
    inputs = _stage_inputs(spec, source, reads, tools)
    with whole_folder(out) as out_now, tempfile.TemporaryDirectory(dir=out.parent, prefix=".vlm-edge-") as state:
        metric = tools.metric if "metric" in spec.reads else None
        work = StageWork(out_now, Path(state), seed, progress or SilentProgress(), metric=metric)
        spec.run(settings, inputs, work)
    return work.facts


def _stage_inputs(spec: StageSpec, source: str | Path, reads: StageReads, tools: Toolbox) -> StageInputs:
    """All that the stage reads, and no more."""
    if spec.source is ArtifactKind.CHECKPOINT:
        artifact = checkpoint_artifact(tools.resolve_model(str(source)))
    else:
        read_manifest(Path(source))
        artifact = Artifact(spec.source, digest_folder(Path(source)), Path(source))
    teacher = task = target = None
    if "teacher" in spec.reads:
        dense = reads.get("teacher")
        teacher = artifact if dense is None else checkpoint_artifact(tools.resolve_model(str(dense)))
    data = reads.get("data")
    if "task" in spec.reads or ("task" in spec.optional and data is not None):
        if data is None:
            hint = "give a manifest with --data, such as calibration/easy-vqa.yaml"
            raise VlmEdgeError(f"{spec.name} needs data", hint)
        task = find_task(data)
    if "target" in spec.reads:
        target = find_target(reads.get("target") or "cpu-ort")
    return StageInputs(artifact, teacher, task, target)


def find_target(name: str) -> Target:
    """A target by name or file, looked up in the working folder and among those that come with the package."""
    return read_target(name, [Path.cwd(), Path.cwd() / "recipes", shipped_folder()], default_toolbox().checks)


def find_task(data: Path) -> TaskSpec:
    """The task of a data manifest, looked up in the working folder and among those that come with the package."""
    candidates = (data, shipped_folder() / data)
    found = next((path.resolve() for path in candidates if path.is_file()), None)
    if found is None:
        raise VlmEdgeError(f"{data}: no such data manifest", "calibration/ holds the ones that come with vlm-edge")
    return TaskSpec(kind=read_dataset_manifest(found).kind, data=found)


@dataclass(frozen=True)
class Against:
    """Another run that a run is held against: its folder or record, and how much worse than it the run may be.

    ``measure`` is a data manifest: the latency of both engines is measured now, in turns, instead of read. An engine
    that is not in its run's bundle is looked for in ``store``.
    """

    run: Path
    tolerances: Tolerances | None = None
    measure: Path | None = None
    store: Path | None = None


def gate_run(
    run: Path,
    *,
    recipe: Path | None = None,
    variant: str | None = None,
    against: Against | Path | None = None,
    progress: Progress | None = None,
    toolbox: Toolbox | None = None,
) -> tuple[RunRecord, Gate]:
    """Judge a run again from its record, and with ``against`` what it lost against another run.

    Args:
        run: a run's folder, or its record.
        recipe: take the budgets from this recipe; default: those in the record.
        variant: default: the one that decides the run.
        against: another run of the same recipe; a path has the default tolerances.
        progress: where bars are drawn.
        toolbox: stages and evaluators of your own; default: the package's.

    Raises:
        UsageError: no such variant, nothing to judge, or runs that are not of one recipe.
        VlmEdgeError: a record, the outcomes or the bundle is missing or damaged.
    """
    tools, after = toolbox or default_toolbox(), _side(run, variant)
    check_bundle(after.record, after.folder)
    name = after.variant.name
    if recipe is None:
        budgets = recorded_budgets(after.record, name)
    else:  # its model and data need not be here
        read = read_recipe(recipe, tools.stages, shipped=shipped_folder())
        budgets = next((entry.budgets for entry in read.stages if entry.name == name), read.budgets)
    changes: list[Judgement] = []
    other = Against(against) if isinstance(against, Path) else against
    if other is not None:
        before = _side(other.run, variant)
        check_comparable(after.record, before.record)
        percentiles = judged_percentiles(budgets)
        change = change_between(before, after, percentiles)
        if other.measure is not None:
            pair = [engine_of(side, other.store) for side in (before, after)]
            task, target, bars = find_task(other.measure), recorded_target(after.record), progress or SilentProgress()
            again = measured_again(pair[0], pair[1], task, target, tools.evaluators, percentiles, bars)
            change = joined([change, again])
        changes = judge_change(change, change_bounds(other.tolerances or Tolerances(), percentiles))
    label = str(other.run) if other is not None else None
    return after.record, gate(after.record, after.variant, budgets, changes, against=label, recorded=recipe is None)


def _side(run: Path, variant: str | None) -> Side:
    record = read_record(run)
    if record.incomplete is not None:
        raise VlmEdgeError(
            f"{record.name}: the run did not end, so there is nothing to judge: {record.incomplete}",
            f"run the recipe again to go on; `vlm-edge report {run}` shows what was measured",
        )
    return Side(record, find_variant(record, variant), run if run.is_dir() else run.parent)
