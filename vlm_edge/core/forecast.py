"""A forecast before a long training: the variant's speed with the stage's untrained output, and the training's time.

Speed depends on a model's shape, not on what it has learned. So the untrained output goes through the variant's
graph-level stages and is measured beside the baseline as the variant will be; hours of training then hold no surprise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError

from vlm_edge.core.artifact import Artifact
from vlm_edge.core.budget import Verdict, is_timed
from vlm_edge.core.decided import judge_all
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.plan import VariantPlan
from vlm_edge.core.recipe import OnMiss
from vlm_edge.core.record import VariantRecord
from vlm_edge.core.stage import Level, StageInputs, StageSpec, StageWork, TrainingCost
from vlm_edge.core.store import key_of
from vlm_edge.core.workbench import Workbench
from vlm_edge.errors import VlmEdgeError

FORECAST_FROM_S = 300.0
"""Shorter trainings than this start without a forecast, which takes from half a minute to a few minutes itself."""

_COST = "training_cost"


def forecast(
    bench: Workbench, plan: VariantPlan, baseline: Artifact | None, variants: Sequence[VariantRecord]
) -> str | None:
    """Tell what the variant's training can win before it starts, where that stage can be forecast and takes long.

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
