"""The plan: the ladder of a recipe expanded into the stage runs of every variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.recipe import Recipe, StageEntry
from vlm_edge.core.stage import Level, StageConfig, StageSpec
from vlm_edge.core.store import StageRecord

BASELINE = "baseline"


@dataclass(frozen=True)
class Step:
    """One stage run on the way to a variant; ``implied`` when the recipe doesn't list it at this point."""

    spec: StageSpec
    config: StageConfig
    implied: bool = False


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

    A variant applies every model-level stage so far and then every graph-level stage so far. Where the recipe lists
    none yet that reads the checkpoint, or none that makes the engine, the table's implied ones do. A leading stage that
    reads the checkpoint for graphs (``export``) is the baseline itself, unless it has settings that the baseline never
    has (16-bit graphs): then the baseline is the same with the baseline's, and the stage as listed the first variant.
    ``without``: names of entries that were dropped and take no part in later variants.
    """
    first = recipe.stages[0] if recipe.stages and recipe.stages[0].spec.first else None
    plain = first and replace(first, config=first.config.model_copy(update=dict(first.spec.baseline)))
    variants = [VariantPlan(BASELINE, _steps([plain] if plain else [], stages), None)]
    for count, entry in enumerate(recipe.stages, start=1):
        if entry is first and first == plain:
            continue
        so_far = [other for other in recipe.stages[:count] if other is entry or other.name not in without]
        if plain and first not in so_far:
            so_far.insert(0, plain)
        variants.append(VariantPlan(entry.name, _steps(so_far, stages), entry))
    return variants


def _steps(entries: Sequence[StageEntry], stages: Mapping[str, StageSpec]) -> tuple[Step, ...]:
    steps = [Step(entry.spec, entry.config) for entry in entries]
    model = [step for step in steps if step.spec.level is Level.MODEL]
    graph = [step for step in steps if step.spec.level is Level.GRAPH]
    if not graph or not graph[0].spec.first:
        graph.insert(0, _implied(stages, ArtifactKind.CHECKPOINT, ArtifactKind.GRAPHS))
    if not graph[-1].spec.last:
        graph.append(_implied(stages, ArtifactKind.GRAPHS, ArtifactKind.ENGINE))
    return (*model, *graph)


def _implied(stages: Mapping[str, StageSpec], source: ArtifactKind, output: ArtifactKind) -> Step:
    """The table's stage from one kind to another that needs no line in a recipe."""
    found = (spec for spec in stages.values() if spec.implied is not None)
    spec = next(spec for spec in found if (spec.source, spec.output) == (source, output))
    return Step(spec, spec.config.model_validate(spec.implied), implied=True)


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
    """Seconds of the latest run of a stage, of one with the same settings if there is one; None if there is none."""
    alike = [record for record in records if record.identity.get("stage") == step.spec.name]
    config = step.config.model_dump(mode="json")
    same = [record for record in alike if record.identity.get("config") == config]
    return (same or alike)[-1].wall_s if alike else None
