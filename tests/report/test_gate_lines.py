from __future__ import annotations

import pytest
from gates import gate_with, judged

from vlm_edge.core.budget import Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.report.numbers import gate_lines


def test_every_budget_with_value_interval_n_bound_and_reason() -> None:
    gate = gate_with(
        judged(Verdict.PASS, "latency.p50_speedup", bound=">= 4"),
        judged(Verdict.FAIL, "latency.p90_speedup", bound=">= 6"),
        judged(Verdict.UNDECIDED, "latency.p99_speedup", needed_n=12_345, reason="the interval holds the bound"),
        judged(Verdict.NOT_MEASURED, "memory.max_rss_mb", reason="the GPU is elsewhere"),
    )
    assert gate_lines(gate) == [
        "pass          latency.p50_speedup  4.5 x [4, 5.5], n 64  >= 4 x",
        "MISSED        latency.p90_speedup  4.5 x [4, 5.5], n 64  >= 6 x",
        "UNDECIDED     latency.p99_speedup  4.5 x [4, 5.5], n 64  >= 5 x",
        "              the interval holds the bound; about 12,345 samples would decide it",
        "NOT MEASURED  memory.max_rss_mb    not measured          >= 5 x",
        "              the GPU is elsewhere",
        "toy: MISSED: compile: 1 missed, 1 not measured, 1 undecided of 4 budgets",
    ]


def test_a_value_close_to_its_bound_is_seen_on_its_side() -> None:
    found = Measurement(metric="accuracy_drop_pt", low=0.5001, value=0.50012, high=0.50021, n=9673, unit="pt")
    line = gate_lines(gate_with(judged(Verdict.FAIL, measured=found, bound="<= 0.5", metric="accuracy_drop_pt")))[0]
    assert "0.50012 pt [0.5001, 0.50021], n 9673" in line
    assert line.endswith("<= 0.5 pt")


@pytest.mark.parametrize(
    ("count", "against", "end"),
    [
        (1, None, "toy: MET: compile is within its one budget"),
        (2, None, "toy: MET: compile is within all 2 budgets"),
        (2, "main", "toy: MET: compile is within all 2 budgets (against main)"),
        (0, None, "toy: no budget was set, so nothing was judged"),
    ],
)
def test_the_last_line_is_the_verdict(count: int, against: str | None, end: str) -> None:
    gate = gate_with(*[judged(Verdict.PASS)] * count, against=against, notes=["the record says fail"])
    assert gate_lines(gate)[-2:] == ["note: the record says fail", end]
