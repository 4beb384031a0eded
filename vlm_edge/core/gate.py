"""The gate: one variant of a run judged again from its record, and held against the same variant of another run.

Nothing is measured here. What changed between the two runs is handed in as a :class:`Change`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlm_edge.checked import first_fault
from vlm_edge.core.budget import Bound, Budgets, Judgement, Verdict, bounds_of, judge, memory_bound, overall
from vlm_edge.core.decided import judge_all
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord, VariantRecord
from vlm_edge.core.target import Target
from vlm_edge.errors import UsageError, VlmEdgeError
from vlm_edge.names import near


class Tolerances(BaseModel):
    """Bounds on how much worse than another run a run may be; None leaves that one out.

    ``max_drop_pt`` is in points (hundredths) of the task's metric; the others are ratios, this run over the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_drop_pt: float | None = Field(default=0.5, ge=0, le=100)
    max_slowdown: float | None = Field(default=1.05, gt=0)
    max_growth: float | None = Field(default=1.01, gt=0)
    max_memory_growth: float | None = Field(default=1.1, gt=0)


class Change(BaseModel):
    """The measured change from one run to another.

    ``measurements``: ``accuracy_drop_pt``, ``latency_p90_slowdown`` (p50, p99), ``size_growth``, ``peak_rss_growth``.
    ``reasons`` says for each that is missing why. ``control`` is the A/A control of the two measurements together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measurements: list[Measurement] = []
    reasons: dict[str, str] = {}
    control: list[Measurement] = []


class Gate(BaseModel):
    """The verdict on one variant. ``notes`` are remarks that change no verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    variant: str
    verdict: Verdict
    judgements: list[Judgement]
    against: str | None = None
    notes: list[str] = []


def gate_of(record: RunRecord) -> Gate:
    """The gate that the run itself was: its deciding variant with the verdicts that the record holds."""
    variant = find_variant(record, None)
    return Gate(run=record.name, variant=variant.name, verdict=record.verdict, judgements=variant.verdicts)


def find_variant(record: RunRecord, name: str | None) -> VariantRecord:
    """A variant by name, or with None the deciding one.

    Raises:
        UsageError: the run has no such variant.
    """
    wanted = record.decided_by if name is None else name
    found = next((variant for variant in record.variants if variant.name == wanted), None)
    if found is None:
        known = [variant.name for variant in record.variants]
        raise UsageError(f"{record.name}: no variant {wanted!r}; {near(wanted, known)}", f"it has {', '.join(known)}")
    return found


def recorded_budgets(record: RunRecord, variant: str) -> Budgets:
    """The budgets that held for a variant when the run was made: its stage's, or for the baseline the recipe's.

    Raises:
        VlmEdgeError: the record's recipe is not what a recipe can be.
    """
    try:
        stages = {stage["name"]: stage["budgets"] for stage in record.recipe.get("stages", [])}
        return Budgets.model_validate(stages.get(variant, record.recipe.get("budgets", {})))
    except (KeyError, TypeError, ValidationError) as error:
        problem = first_fault(error, Budgets) if isinstance(error, ValidationError) else f"no {error} in a stage"
        raise VlmEdgeError(
            f"{record.name}: the budgets in the record can't be read: {problem}", "run the recipe again"
        ) from error


def recorded_target(record: RunRecord) -> Target:
    """The target that the run was made for.

    Raises:
        VlmEdgeError: the record's target is not what a target can be.
    """
    given = record.recipe.get("target")
    if isinstance(given, dict):  # records of earlier versions have keys that say nothing here
        given = {key: value for key, value in given.items() if key in Target.model_fields}
    try:
        return Target.model_validate(given)
    except ValidationError as error:
        problem = first_fault(error, Target, within="recipe.target")
        raise VlmEdgeError(f"{record.name}: the record's {problem}", "run the recipe again") from error


def judge_again(record: RunRecord, variant: VariantRecord, budgets: Budgets) -> list[Judgement]:
    """Hold budgets, and the target's memory, against what the record says was measured, as the run itself does."""
    return judge_all(
        [*bounds_of(budgets), *memory_bound(recorded_target(record), variant.conditions)],
        variant.measurements,
        control=record.variants[0].measurements,
        conditions=variant.conditions,
        unmeasurable=variant.unmeasured,
        emulated=variant.emulated,
    )


def gate(
    record: RunRecord,
    variant: VariantRecord,
    budgets: Budgets,
    changes: Iterable[Judgement] = (),
    *,
    against: str | None = None,
    recorded: bool = True,
) -> Gate:
    """Judge one variant on its budgets and, with ``changes``, on what it lost against another run.

    Args:
        recorded: the budgets are those of the record, so a verdict that differs from the recorded one is noted.

    Raises:
        UsageError: there is nothing to judge, and a gate that judges nothing must not be open.
    """
    own = judge_again(record, variant, budgets)
    judgements = [*own, *changes]
    if not judgements:
        raise UsageError(
            f"{record.name}: no budget holds for {variant.name}, so there is nothing to judge",
            "set budgets in the recipe and give it with --recipe, or hold the run against another with --against",
        )
    notes = []
    if recorded and overall(own) is not variant.verdict:
        notes.append(f"the record says {variant.verdict.value}; judged again it is {overall(own).value}")
    return Gate(
        run=record.name,
        variant=variant.name,
        verdict=overall(judgements),
        judgements=judgements,
        against=against,
        notes=notes,
    )


_PERCENTILE = re.compile(r"latency_(p\d+)_(?:ms|speedup)")


def judged_percentiles(budgets: Budgets) -> list[str]:
    """The percentiles whose slow-down counts: those that a budget bounds, p90 where none does."""
    found = (_PERCENTILE.fullmatch(bound.metric) for bound in bounds_of(budgets))
    return list(dict.fromkeys(match[1] for match in found if match)) or ["p90"]


def change_bounds(tolerances: Tolerances, percentiles: Iterable[str]) -> list[Bound]:
    """The bounds on what a run may have lost against another."""
    slowdown = [(f"max_slowdown[{each}]", f"latency_{each}_slowdown", tolerances.max_slowdown) for each in percentiles]
    rows = [
        ("max_drop_pt", "accuracy_drop_pt", tolerances.max_drop_pt),
        *slowdown,
        ("max_growth", "size_growth", tolerances.max_growth),
        ("max_memory_growth", "peak_rss_growth", tolerances.max_memory_growth),
    ]
    return [
        Bound(budget=f"against.{name}", metric=metric, at_most=limit)
        for name, metric, limit in rows
        if limit is not None
    ]


def judge_change(change: Change, bounds: Iterable[Bound]) -> list[Judgement]:
    """Hold the change between two runs against its bounds: PASS, FAIL or UNDECIDED by its interval, as everywhere."""
    return [
        judge(bound, change.measurements, control=change.control, unmeasurable=change.reasons.get(bound.metric))
        for bound in bounds
    ]


def check_comparable(record: RunRecord, before: RunRecord) -> None:
    """Raise UsageError unless the second run can be one of the same recipe at another commit."""
    tasks = [each.recipe.get("task") for each in (record, before)]
    own_kind, other_kind = (task.get("kind") if isinstance(task, dict) else "unknown" for task in tasks)
    for what, own, other in (("recipes", record.name, before.name), ("task kinds", own_kind, other_kind)):
        if own != other:
            raise UsageError(
                f"the runs are of different {what}, {own} and {other}: there is no change to judge",
                "give two runs of one recipe; `vlm-edge compare` shows any two runs side by side",
            )
