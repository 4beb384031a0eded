"""A recipe: what to compress, for which target, within which budgets, and the ladder of stages to try.

:func:`read_recipe` checks the whole file before anything runs and reports every fault at once, each with its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from vlm_edge.checked import MAX_FAULTS, faults_of, place_in
from vlm_edge.core.budget import Budgets
from vlm_edge.core.stage import Level, Progress, StageConfig, StageSpec, TaskSpec
from vlm_edge.core.target import Target
from vlm_edge.documents import read_yaml, reason, text_problem
from vlm_edge.errors import RecipeError, VlmEdgeError, short, shown
from vlm_edge.names import near


class OnMiss(StrEnum):
    """The action after a missed budget: go on, end the run there, or leave the stage out and go on."""

    CONTINUE = "continue"
    STOP = "stop"
    DROP = "drop"


_Model = TypeVar("_Model", bound=BaseModel)
RunMode = Literal["all", "until-met"]
_KEYS = ("name", "model", "task", "target", "budgets", "stages", "run", "seed")
_REQUIRED = ("name", "model", "task", "target", "stages")
_STAGE_KEYS = ("budgets", "waive", "on_miss")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST_PATH = 1024
_MOST_STAGES = 100


@dataclass(frozen=True)
class StageEntry:
    """One line of ``stages:``. ``name`` is the variant that the ladder reaches with it, unique in the recipe."""

    name: str
    spec: StageSpec
    config: StageConfig
    budgets: Budgets
    on_miss: OnMiss

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.spec.name


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. ``path`` is the file it came from; ``budgets`` of each entry are already resolved."""

    path: Path
    name: str
    model: str
    task: TaskSpec
    target: Target
    budgets: Budgets
    stages: tuple[StageEntry, ...]
    run: RunMode
    seed: int
    notes: tuple[str, ...] = ()
    """Findings of the check that are no faults, such as images that will be left out."""

    def resolved(self) -> dict[str, Any]:
        """Everything that was decided, defaults included, as JSON."""
        return {
            "name": self.name,
            "model": self.model,
            "task": {"kind": self.task.kind, "data": self.task.data.name},
            "target": self.target.model_dump(mode="json"),
            "budgets": self.budgets.model_dump(mode="json", exclude_none=True),
            "stages": [
                {
                    "name": entry.name,
                    "stage": entry.stage,
                    "config": entry.config.model_dump(mode="json"),
                    "budgets": entry.budgets.model_dump(mode="json", exclude_none=True),
                    "on_miss": entry.on_miss.value,
                }
                for entry in self.stages
            ],
            "run": self.run,
            "seed": self.seed,
        }


class Checks(Protocol):
    """Hold what a recipe names against what there is: models, data, hardware."""

    def model(self, reference: str) -> None:
        """Raise VlmEdgeError for a model that can't be used."""

    def task(self, task: TaskSpec) -> None:
        """Raise VlmEdgeError for a task whose data manifest can't be used."""

    def target(self, target: Target) -> tuple[Target, list[tuple[str, str]]]:
        """The target with what its engine leaves no choice of, and (key, what is wrong) where no engine serves it."""

    def budgets(self, task: TaskSpec, budgets: Budgets) -> list[tuple[str, str]]:
        """(key, what is wrong) of each budget that the task's data can't decide."""

    def fit(self, recipe: Recipe, progress: Progress) -> list[str]:
        """Hold the model and the data against what the stages need of them; returns what is worth knowing.

        Raises:
            RecipeError: the model can't do the task or what a stage does to it, or the data lack what a stage reads.
        """


class _Faults:
    """Collects faults with their places."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[str] = []

    def add(self, place: str, message: str) -> None:
        self.found.append(f"{self.file}: {place}: {message}" if place else f"{self.file}: {message}")

    def validate(self, model: type[_Model], value: Any, place: str) -> _Model | None:
        """``value`` as ``model``, or None with every fault noted."""
        try:
            return model.model_validate({} if value is None else value)
        except ValidationError as error:
            for where, message in faults_of(error, model):
                self.add(place_in(place, where), message)
            return None

    def target(self, value: Any, place: str, checks: Checks | None) -> Target | None:
        """``value`` as a target, or None with every fault noted."""
        target = self.validate(Target, value, place)
        if target is None or checks is None:
            return target
        settled, faults = checks.target(target)
        for key, message in faults:
            self.add(place_in(place, key), message)
        return None if faults else settled


def read_recipe(
    path: Path,
    stages: Mapping[str, StageSpec],
    *,
    shipped: Path | None = None,
    checks: Checks | None = None,
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file. Relative paths in it are looked up beside it, beside its parent folder, and in the working
            folder.
        stages: the table of stages.
        shipped: folder with the ``recipes/`` and ``calibration/`` that come with the package.
        checks: hold the model, the task, the target and the budgets against what there is; None: their forms alone are
            checked.

    Raises:
        VlmEdgeError: the file is missing or unreadable.
        RecipeError: it has faults; all of them are listed.
    """
    raw = _load_yaml(path, "recipe", "write one with `vlm-edge init`")
    faults = _Faults(path.name)
    if not isinstance(raw, dict):
        raise RecipeError([f"{path.name}: a recipe is a mapping with the keys {', '.join(_KEYS)}"])
    unknown = [key for key in raw if key not in _KEYS]
    for key in unknown[:MAX_FAULTS]:
        faults.add(short(key), f"unknown key; {near(key, _KEYS)}")
    if len(unknown) > MAX_FAULTS:
        faults.add("", f"and {len(unknown) - MAX_FAULTS:,} unknown keys more")
    for key in _REQUIRED:
        if raw.get(key) in (None, "", [], {}):
            faults.add(key, "missing")
    roots = [path.parent, path.parent.parent, Path.cwd(), *([shipped] if shipped else [])]
    name = raw.get("name")
    if name is not None and (not isinstance(name, str) or not _NAME.fullmatch(name)):
        faults.add("name", f"{shown(name)} can't name a folder: up to 100 letters, digits, '.', '_' and '-'")
    model = _check_model(raw.get("model"), roots, faults)
    task = _check_task(raw.get("task"), roots, faults)
    if raw.get("model") and checks is not None:
        _try(checks.model, model, "model", faults)
    if task is not None and checks is not None:
        _try(checks.task, task, "task.data", faults)
    target = _check_target(raw.get("target"), roots, checks, faults)
    budgets = faults.validate(Budgets, raw.get("budgets"), "budgets") or Budgets()
    entries = _check_stages(raw.get("stages"), stages, budgets, faults)
    if task is not None and checks is not None and not faults.found:
        _check_budgets(partial(checks.budgets, task), budgets, entries, faults)
    run = raw.get("run", "all")
    if run not in get_args(RunMode):
        faults.add("run", f"{shown(run)} is neither 'all' nor 'until-met'")
    seed = raw.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        faults.add("seed", f"a whole number from 0 to 2**32 - 1 (got {shown(seed)})")
    if faults.found or task is None or target is None:
        raise RecipeError(faults.found, f"mend it, then run `vlm-edge check {path}`; docs/recipe.md lists every key")
    return Recipe(path, str(name), model, task, target, budgets, tuple(entries), run, seed)


def _load_yaml(path: Path, what: str, hint: str) -> Any:
    try:
        return read_yaml(path)
    except FileNotFoundError as error:
        raise VlmEdgeError(f"{short(str(path))}: no such {what}", hint) from error
    except (OSError, ValueError) as error:
        raise VlmEdgeError(
            f"{short(str(path))}: can't be read: {reason(error)}", f"a {what} is a YAML text file"
        ) from error


def _try(check: Callable[[Any], object], value: Any, place: str, faults: _Faults) -> None:
    """Note what ``check`` has against ``value``."""
    try:
        check(value)
    except RecipeError as error:
        faults.found.extend(error.faults)
    except VlmEdgeError as error:
        message = error.message.removeprefix(f"{place}: ")
        faults.add(place, f"{message} ({error.hint})" if error.hint else message)


def _check_budgets(
    check: Callable[[Budgets], list[tuple[str, str]]], budgets: Budgets, entries: list[StageEntry], faults: _Faults
) -> None:
    """Note what the data can't decide: in the recipe's budgets, and in those that a stage sets otherwise."""
    common = check(budgets)
    for key, message in common:
        faults.add(f"budgets.{key}", message)
    for index, entry in enumerate(entries):
        for key, message in check(entry.budgets) if entry.budgets != budgets else []:
            if (key, message) not in common:
                faults.add(f"stages[{index}].{entry.stage}.budgets.{key}", message)


def _check_model(model: Any, roots: list[Path], faults: _Faults) -> str:
    """A zoo name or Hub id as it is; a path that exists beside the recipe, made absolute."""
    if model is None:
        return ""
    if not isinstance(model, str) or len(model) > _LONGEST_PATH or text_problem(model):
        faults.add("model", f"a zoo name, a folder or a Hub id (got {shown(model)})")
        return ""
    if model.startswith("zoo:"):
        return model
    found = _look_up(model, roots)
    return str(found) if found is not None and found.is_dir() else model


def _look_up(reference: str, roots: list[Path]) -> Path | None:
    """The first of ``roots`` under which the path exists, resolved; None when there is none."""
    return next(((root / reference).resolve() for root in roots if os.path.exists(root / reference)), None)  # noqa: PTH110


def _check_task(value: Any, roots: list[Path], faults: _Faults) -> TaskSpec | None:
    if value is None:
        return None
    task = faults.validate(TaskSpec, value, "task")
    if task is None:
        return None
    found = _look_up(str(task.data), roots)
    if found is None or not found.is_file():
        faults.add("task.data", f"no file {short(str(task.data))}")
        return None
    return task.model_copy(update={"data": found})


def _check_target(value: Any, roots: list[Path], checks: Checks | None, faults: _Faults) -> Target | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return faults.target(value, "target", checks)
    if not isinstance(value, str):
        faults.add("target", f"a name of recipes/targets/, a file, or a mapping (got {shown(value)})")
        return None
    try:
        return read_target(value, roots, checks)
    except RecipeError as error:
        faults.found.extend(error.faults)
    except VlmEdgeError as error:
        faults.add("target", error.message)
    return None


def read_target(name: str, roots: list[Path], checks: Checks | None = None) -> Target:
    """A target by name (``targets/NAME.yaml`` or ``recipes/targets/NAME.yaml`` under one of ``roots``) or by file.

    ``checks`` hold it against what engines there are; with None its form alone is checked.

    Raises:
        VlmEdgeError: there is no such target.
        RecipeError: it has faults.
    """
    folders = [root / sub for root in roots for sub in ("targets", "recipes/targets")]
    candidates = [folder / f"{name}.yaml" for folder in folders]
    if name.endswith((".yaml", ".yml")):
        candidates = [root / name for root in roots]
    file = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)  # noqa: PTH113
    if file is None:
        known = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")}
        raise VlmEdgeError(f"unknown target {shown(name)}; {near(name, known)}", "recipes/targets/ lists the targets")
    faults = _Faults(f"targets/{file.name}")
    target = faults.target(_load_yaml(file, "target", "recipes/targets/ lists the targets"), "", checks)
    if target is None:
        raise RecipeError(faults.found)
    return target


def _check_stages(value: Any, table: Mapping[str, StageSpec], budgets: Budgets, faults: _Faults) -> list[StageEntry]:
    if value is None:
        return []
    if not isinstance(value, list):
        faults.add("stages", "a list, one stage a line, such as `- quantize: {}`")
        return []
    if len(value) > _MOST_STAGES:
        faults.add("stages", f"at most {_MOST_STAGES} (got {len(value):,})")
    entries: list[StageEntry] = []
    for index, item in enumerate(value[:_MOST_STAGES]):
        place = f"stages[{index}]"
        if isinstance(item, str):
            item = {item: {}}
        if not isinstance(item, dict) or len(item) != 1:
            faults.add(place, f"one stage with its settings, such as `- quantize: {{}}` (got {shown(item)})")
            continue
        ((stage, settings),) = item.items()
        if stage not in table:
            faults.add(place, f"unknown stage {shown(stage)}; {near(stage, table)}")
            continue
        entry = _check_entry(table[stage], settings, f"{place}.{stage}", budgets, faults)
        if entry is not None:
            before = sum(other.stage == stage for other in entries)
            entries.append(replace(entry, name=f"{stage}-{before + 1}") if before else entry)
    _check_order(entries, faults)
    return entries


def _check_entry(spec: StageSpec, settings: Any, place: str, budgets: Budgets, faults: _Faults) -> StageEntry | None:
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        faults.add(place, f"a mapping of settings (got {shown(settings)})")
        return None
    own = faults.validate(Budgets, settings.get("budgets"), f"{place}.budgets")
    on_miss = settings.get("on_miss", OnMiss.CONTINUE.value)
    if on_miss not in list(OnMiss):
        faults.add(
            f"{place}.on_miss", f"unknown {shown(on_miss)}; {near(shown(on_miss), [miss.value for miss in OnMiss])}"
        )
        own = None
    waived = settings.get("waive", [])
    if not isinstance(waived, list) or any(group not in list(Budgets.model_fields) for group in waived):
        faults.add(f"{place}.waive", f"a list of {', '.join(Budgets.model_fields)} (got {shown(waived)})")
        own = None
    rest = {key: setting for key, setting in settings.items() if key not in _STAGE_KEYS}
    config = faults.validate(spec.config, rest, place)
    if own is None or config is None:
        return None
    kept = budgets.overridden(own).model_copy(update=dict.fromkeys(waived))
    return StageEntry(spec.name, spec, config, kept, OnMiss(on_miss))


def _check_order(entries: list[StageEntry], faults: _Faults) -> None:
    """A variant is lowered once: one stage reads the checkpoint, before the others, and one makes the engine, last."""
    graph = [entry for entry in entries if entry.spec.level is Level.GRAPH]
    for alike in ([each.stage for each in graph if each.spec.first], [each.stage for each in graph if each.spec.last]):
        if len(alike) > 1:
            listed = f"{alike[0]} is listed twice" if len({*alike}) == 1 else f"{' and '.join(alike)} are listed"
            faults.add("stages", f"{listed}; a variant is lowered by one {' or '.join(dict.fromkeys(alike))}")
    for before, entry in pairwise(graph):
        if entry.spec.first:
            faults.add(
                "stages", f"{entry.stage} comes after {before.stage}, and reads a checkpoint: list {entry.stage} first"
            )
        if before.spec.last:
            faults.add("stages", f"{entry.stage} comes after {before.stage}: list {before.stage} last")
