"""Latency that is measured on while a verdict is open, and the A/A control that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.core.budget import Bound, Verdict, judge
from vlm_edge.core.decided import IsOpen, is_undecided, judge_all, measure_until_decided, worth_more
from vlm_edge.core.measurement import Measurement, Timed

BOUND = Bound(budget="latency.p90_speedup", metric="latency_p90_speedup", at_least=5.0)
BASELINE, CANDIDATE = Path("baseline"), Path("candidate")


def measured(low: float, value: float, high: float, metric: str = "latency_p90_speedup") -> Measurement:
    return Measurement(metric=metric, low=low, value=value, high=high, n=100, unit="x")


def control(low: float, high: float) -> Measurement:
    return measured(low, 1.0, high, "latency_p90_control")


NOISY = control(0.52, 1.21)
"""The A/A control of a run on a busy host; it left 9.3x [7.5, 11.6] undecided against a bound of 5x."""


class Engines:
    """Gives each engine's measurements in turn for as long as the verdict is open, as a real measurement does."""

    def __init__(self, **steps: Sequence[Measurement]) -> None:
        self.steps = steps
        self.taken: list[str] = []

    def __call__(self, engine: Path, is_open: IsOpen) -> Timed:
        self.taken.append(engine.name)
        for step in self.steps[engine.name]:
            if not is_open([step]):
                break
        return Timed(measurements=[step], conditions={"of": engine.name})


def decided(engines: Engines, known: Measurement) -> tuple[Timed, Verdict]:
    timed = measure_until_decided(engines, BASELINE, CANDIDATE, [BOUND], [known])
    return timed, judge(BOUND, timed.measurements, control=[known]).verdict


def test_a_control_from_a_noisy_minute_is_taken_again_where_it_alone_is_in_the_way() -> None:
    pair = measured(7.5, 9.3, 11.6)
    assert judge(BOUND, [pair], control=[NOISY]).verdict is Verdict.UNDECIDED
    engines = Engines(candidate=[pair], baseline=[control(0.5, 1.1), control(0.8, 1.1), control(0.9, 1.1)])
    timed, verdict = decided(engines, NOISY)
    assert verdict is Verdict.PASS
    assert engines.taken == ["candidate", "baseline"]
    assert timed.measurements == [pair, control(0.8, 1.1)]  # and no longer than the verdict was open
    assert timed.conditions == {"of": "candidate", "control": {"of": "baseline"}}


def test_a_control_that_stays_as_wide_as_the_distance_leaves_the_verdict_open() -> None:
    engines = Engines(candidate=[measured(5.1, 5.2, 5.3)], baseline=[control(0.9, 1.1)])
    assert decided(engines, NOISY)[1] is Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("pair", "known", "verdict"),
    [
        (measured(9, 9.3, 9.5), control(0.99, 1.01), Verdict.PASS),
        (measured(1.5, 1.6, 1.7), control(0.99, 1.01), Verdict.FAIL),
        (measured(4.5, 5.2, 6.0), NOISY, Verdict.UNDECIDED),  # not the control alone: another one would not help
    ],
)
def test_else_the_control_is_not_taken_again(pair: Measurement, known: Measurement, verdict: Verdict) -> None:
    engines = Engines(candidate=[pair])
    timed, found = decided(engines, known)
    assert (found, engines.taken, timed.measurements) == (verdict, ["candidate"], [pair])


def test_a_pair_is_measured_on_while_its_own_interval_holds_the_bound() -> None:
    engines = Engines(candidate=[measured(3, 6, 12), measured(4.5, 6, 8), measured(5.2, 6, 7)])
    timed, verdict = decided(engines, control(0.99, 1.01))
    assert verdict is Verdict.PASS
    assert timed.measurements == [measured(5.2, 6, 7)]


def test_only_times_are_worth_measuring_on() -> None:
    accuracy = Bound(budget="accuracy.max_drop_pt", metric="accuracy_drop_pt", at_most=1.0)
    assert not is_undecided([accuracy], [measured(0.5, 0.9, 1.3, "accuracy_drop_pt")])
    assert not is_undecided([BOUND], [])  # not measured is not undecided
    assert is_undecided([accuracy, BOUND], [measured(4, 6, 8)])


@pytest.mark.parametrize(
    ("pair_s", "control_s", "patience_s", "more"),
    [(15, None, 300, True), (300.2, None, 300, False), (300.2, None, 600, True), (15, 301, 300, False)],
)
def test_an_open_measurement_is_taken_again_if_there_is_more_patience_than_it_had(
    pair_s: float, control_s: float | None, patience_s: float, more: bool
) -> None:
    conditions: dict[str, Any] = {"meanwhile": {"seconds": pair_s}}
    if control_s is not None:
        conditions["control"] = {"meanwhile": {"seconds": control_s}}
    undecided = Timed(measurements=[measured(4, 6, 8)], conditions=conditions)
    assert worth_more(undecided, [BOUND], [], patience_s) is more
    assert not worth_more(undecided, [], [], patience_s)


def test_an_open_verdict_says_what_the_host_did_and_what_to_run() -> None:
    conditions = {
        "patience_s": 300.0,
        "meanwhile": {
            "seconds": 302.4,
            "cpu_busy_share": 0.97,
            "cpu_waiting_share": 0.88,
            "cpu_stolen_share": 0.03,
            "load_average": {"before": [2.0, 1, 1], "after": [4.1, 2, 1]},
        },
        "engines": {"baseline": {"disturbed_share": 0.31}, "candidate": {"disturbed_share": 0.1}},
    }
    (open_one,) = judge_all([BOUND], [measured(4, 6, 8)], control=[], conditions=conditions)
    assert open_one.reason is not None
    assert open_one.reason.endswith(
        "in 302 s of measuring: its CPUs were busy 97% of the time, the load was 4.1, tasks waited for a CPU 88% of "
        "it, other guests of the machine had 3%, 31% of an engine's queries were interrupted; stop other work on this "
        "host, or measure longer: `vlm-edge run RECIPE --remeasure --patience 600`"
    )
    (bare,) = judge_all([BOUND], [measured(4, 6, 8)], control=[], conditions={})
    assert "measure longer: `vlm-edge run RECIPE --remeasure" in (bare.reason or "")
    (met,) = judge_all([BOUND], [measured(6, 7, 8)], control=[], conditions=conditions)
    assert met.reason is None
