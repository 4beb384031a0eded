"""The plan: the ladder of a recipe expanded into the stage runs of every variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlm_edge.core.recipe import Recipe, StageEntry
from vlm_edge.core.stage import Level, StageConfig, StageSpec
from vlm_edge.core.store import StageRecord

BASELINE = "baseline"


@dataclass(frozen=True)
class Step:
    """One stage run on the way to a variant; ``implied`` when the recipe doesn't list it at this point."""

    stage: str
    config: StageConfig
    implied: bool


@dataclass(frozen=True)
class VariantPlan:
    """One point on the ladder: its steps, model-level first. ``entry`` is the stage that it judges."""

    name: str
    steps: tuple[Step, ...]
    entry: StageEntry | None


def plan_variants(
    recipe: Recipe, stages: Mapping[str, StageSpec], *, without: frozenset[str] = frozenset()
) -> list[VariantPlan]:
    """Every variant of a recipe in order, the FP32 baseline first.

    A variant applies every model-level stage so far and then every graph-level stage so far; an export before them and
    a compile after them are implied where the recipe doesn't list one yet. A leading ``export`` is the baseline itself.

    Args:
        recipe: the checked recipe.
        stages: the table of stages.
        without: names of entries that were dropped and take no part in later variants.
    """
    variants = [
        VariantPlan(BASELINE, _steps(list(recipe.stages[:1]) if _starts_with_export(recipe) else [], stages), None)
    ]
    for count, entry in enumerate(recipe.stages, start=1):
        if count == 1 and _starts_with_export(recipe):
            continue
        so_far = [other for other in recipe.stages[:count] if other is entry or other.name not in without]
        variants.append(VariantPlan(entry.name, _steps(so_far, stages), entry))
    return variants


def _starts_with_export(recipe: Recipe) -> bool:
    return bool(recipe.stages) and recipe.stages[0].stage == "export"


def _steps(entries: list[StageEntry], stages: Mapping[str, StageSpec]) -> tuple[Step, ...]:
    model = [Step(entry.stage, entry.config, False) for entry in entries if entry.level is Level.MODEL]
    graph = [Step(entry.stage, entry.config, False) for entry in entries if entry.level is Level.GRAPH]
    if not graph or graph[0].stage != "export":
        graph.insert(0, Step("export", stages["export"].config(), True))
    if graph[-1].stage != "compile":
        graph.append(Step("compile", stages["compile"].config.model_validate({"optimize": "runtime"}), True))
    return (*model, *graph)


@dataclass(frozen=True)
class PlannedRun:
    """One stage run of the plan. ``key`` is None while an earlier stage run has yet to give its input.

    ``seconds``: how long it took, or the like of it in this store (the same settings, else the latest of the stage).
    """

    variant: str
    stage: str
    implied: bool
    key: str | None
    cached: bool
    seconds: float | None = None


def expected_seconds(step: Step, records: Sequence[StageRecord]) -> float | None:
    """How long the latest run of a stage took, one with the same settings if there is one; None if there is none."""
    alike = [record for record in records if record.identity.get("stage") == step.stage]
    config = step.config.model_dump(mode="json")
    same = [record for record in alike if record.identity.get("config") == config]
    return (same or alike)[-1].wall_s if alike else None
