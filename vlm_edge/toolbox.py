"""The package's toolbox: core joined with the tables of stages and evaluators, the families and the data."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from vlm_edge.backends import backend
from vlm_edge.checked import place_in
from vlm_edge.checkpoints.sources import resolve_model
from vlm_edge.core.budget import Budgets
from vlm_edge.core.recipe import Recipe
from vlm_edge.core.stage import Named, Progress, TaskMetric, TaskSpec
from vlm_edge.core.target import Target
from vlm_edge.core.toolbox import Toolbox
from vlm_edge.data import dataset_digest, load_dataset
from vlm_edge.data.dataset import Split, check_unreadable
from vlm_edge.data.loading import shared_images, unreadable_images
from vlm_edge.data.manifest import read_dataset_manifest
from vlm_edge.errors import RecipeError, VlmEdgeError
from vlm_edge.evaluation.evaluators import EngineEvaluators
from vlm_edge.evaluation.host import host_fingerprint, host_record
from vlm_edge.evaluation.stage_metric import DrawnMetric, budget_faults
from vlm_edge.evaluation.tasks import tasks_of_kind
from vlm_edge.names import near
from vlm_edge.processing.manifest import Transparency
from vlm_edge.stages import STAGES
from vlm_edge.stages.preflight import Preflight, check_images


def default_toolbox() -> Toolbox:
    """Core's view of the layers above it."""
    metric = DrawnMetric()
    return Toolbox(
        stages=STAGES,
        evaluators=EngineEvaluators(),
        resolve_model=resolve_model,
        data_digest=_data_digest,
        host_fingerprint=host_fingerprint,
        host_record=host_record,
        source_revision=source_revision,
        metric=metric,
        preflight=Preflight(),
        checks=RecipeChecks(metric),
    )


def _data_digest(task: TaskSpec) -> str:
    splits = sorted(read_dataset_manifest(task.data).splits)
    return "+".join(f"{split}={dataset_digest(task.data, split)}" for split in splits)


def source_revision(recipe: Path) -> str | None:
    """The git commit of the tree that the recipe lies in, ``-dirty`` with changes; None where there is none."""
    describe = ["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    command = ["git", "-C", str(recipe.resolve().parent), *describe]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class RecipeChecks:
    """Holds a recipe against the families, the data and the target's engine."""

    def __init__(self, metric: TaskMetric) -> None:
        self._metric = metric

    def model(self, reference: str) -> None:
        from vlm_edge.checkpoints.config import read_config

        read_config(resolve_model(reference))

    def task(self, task: TaskSpec) -> None:
        manifest = read_dataset_manifest(task.data)
        if manifest.kind != task.kind:
            raise VlmEdgeError(f"{task.data.name} is for the task kind {manifest.kind}, not {task.kind}")
        if "test" not in manifest.splits:
            raise VlmEdgeError(f"{task.data.name} has no test split, so no variant could be judged")
        load_dataset(task.data, "test")

    def target(self, target: Target) -> tuple[Target, list[tuple[str, str]]]:
        try:
            spec = backend(target.engine)
        except VlmEdgeError as error:
            return target, [("engine", f"{error.message}; {error.hint}")]
        isas, faults = spec.isas, []
        if target.isa not in ("auto", *isas):
            known = near(target.isa, ("auto", *isas))
            faults.append(("isa", f"{target.engine} has no instruction set {target.isa!r}; {known}"))
        for each in target.compute_capabilities:
            if each not in spec.capabilities:
                known = f"it has {', '.join(spec.capabilities)}" if spec.capabilities else "leave it out"
                faults.append(("compute_capabilities", f"{target.engine} builds for no GPU of {each!r}; {known}"))
        if faults:
            return target, faults
        only = target.isa == "auto" and len(isas) == 1
        return target.model_copy(update={"isa": isas[0]}) if only else target, []

    def budgets(self, task: TaskSpec, budgets: Budgets) -> list[tuple[str, str]]:
        return budget_faults(load_dataset(task.data, "test"), budgets)

    def fit(self, recipe: Recipe, progress: Progress) -> list[str]:
        from vlm_edge.checkpoints.config import read_config
        from vlm_edge.families.loading import find_family

        folder, splits = resolve_model(recipe.model), read_dataset_manifest(recipe.task.data).splits
        family = find_family(folder, read_config(folder))
        faults: list[tuple[str, str]] = []
        if recipe.task.kind not in (tasks := tasks_of_kind(family.pipeline)):
            kinds = ", ".join(tasks)
            faults.append(("task.kind", f"{family.architectures[0]} can't do {recipe.task.kind}; it does: {kinds}"))
        faults += self._stage_faults(recipe, folder)
        transparency: Transparency = "drop"
        try:
            image = family.image_processing(folder)
            transparency = image.transparency
            check_images(folder, recipe.task, image)
        except VlmEdgeError as error:
            faults.append(("model", error.message))
        notes: list[str] = []
        read = {"test"}.union(*(entry.spec.splits(entry.config) for entry in recipe.stages))
        for split in (each for each in splits if each in read):
            found, skipped = _image_faults(recipe.task.data, split, transparency, progress)
            faults += [("task.data", fault) for fault in found]
            notes += skipped
        if faults:
            raise RecipeError([f"{recipe.path.name}: {place}: {problem}" for place, problem in faults])
        return notes

    def _stage_faults(self, recipe: Recipe, folder: Path) -> list[tuple[str, str]]:
        """(place, problem) of stages that read a split which is not there, or that the model or target can't have."""
        named = Named(folder, recipe.task, recipe.target, self._metric)
        splits = read_dataset_manifest(recipe.task.data).splits
        faults = []
        for index, entry in enumerate(recipe.stages):
            place = f"stages[{index}].{entry.stage}"
            if absent := [split for split in entry.spec.splits(entry.config) if split not in splits]:
                there = f"{recipe.task.data.name} has: {', '.join(splits)}"
                faults += [(place, f"it reads the split {split}; {there}") for split in absent]
            else:
                before = {other.stage: other.config for other in recipe.stages[:index]}
                found = entry.spec.check(entry.config, replace(named, before=before))
                faults += [(place_in(place, key), problem) for key, problem in found]
        return faults


def _image_faults(
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
