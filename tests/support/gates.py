"""Judgements and gates for tests, made by hand."""

from __future__ import annotations

from typing import Any

from vlm_edge.core.budget import Judgement, Verdict, overall
from vlm_edge.core.gate import Gate
from vlm_edge.core.measurement import Measurement


def judged(verdict: Verdict, budget: str = "latency.p90_speedup", **changes: Any) -> Judgement:
    """4.5 x [4, 5.5], n 64, held against >= 5: whatever ``verdict`` says of it."""
    found = Measurement(metric="latency_p90_speedup", low=4.0, value=4.5, high=5.5, n=64, unit="x")
    values = {
        "budget": budget,
        "metric": "latency_p90_speedup",
        "bound": ">= 5",
        "verdict": verdict,
        "measured": None if verdict is Verdict.NOT_MEASURED else found,
    }
    return Judgement.model_validate({**values, **changes})


def gate_with(*judgements: Judgement, run: str = "toy", variant: str = "compile", **changes: Any) -> Gate:
    return Gate(run=run, variant=variant, verdict=overall(judgements), judgements=list(judgements), **changes)
