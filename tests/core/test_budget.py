from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.core.budget import Bound, Budgets, Verdict, bounds_of, judge, overall
from vlm_edge.core.measurement import Measurement


def measured(low: float, high: float, metric: str = "m") -> Measurement:
    return Measurement(metric=metric, low=low, value=(low + high) / 2, high=high, n=9, unit="")


@pytest.mark.parametrize(
    ("low", "high", "at_most", "at_least"),
    [
        (0.2, 0.8, Verdict.PASS, Verdict.FAIL),
        (1.2, 1.8, Verdict.FAIL, Verdict.PASS),
        (0.8, 1.2, Verdict.UNDECIDED, Verdict.UNDECIDED),
        (1.0, 1.0, Verdict.PASS, Verdict.PASS),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, at_most: Verdict, at_least: Verdict) -> None:
    found = [measured(low, high)]
    assert judge(Bound(budget="b", metric="m", at_most=1.0), found).verdict is at_most
    assert judge(Bound(budget="b", metric="m", at_least=1.0), found).verdict is at_least


@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9))
def test_a_pass_implies_that_every_value_of_the_interval_is_inside(a: float, b: float, bound: float) -> None:
    low, high = sorted((a, b))
    verdict = judge(Bound(budget="b", metric="m", at_most=bound), [measured(low, high)]).verdict
    assert (verdict is Verdict.PASS) == (high <= bound)
    assert (verdict is Verdict.FAIL) == (low > bound)


def test_what_was_not_measured_never_passes() -> None:
    judgement = judge(Bound(budget="b", metric="m", at_most=1.0), [measured(0, 0, "other")], unmeasurable="no GPU")
    assert judgement.verdict is Verdict.NOT_MEASURED
    assert judgement.reason == "no GPU"
    assert overall([judgement]) is Verdict.NOT_MEASURED


def test_bounds_of_lists_what_is_set_in_the_metrics_unit() -> None:
    budgets = Budgets.model_validate({"accuracy": {"max_drop_pt": 1}, "size": {"max_mb": 2.5}})
    assert [(b.metric, b.at_most, str(b)) for b in bounds_of(budgets)] == [
        ("accuracy_drop_pt", 1.0, "<= 1"),
        ("size_bytes", 2.5e6, "<= 2.5e+06"),
    ]


def test_the_worst_verdict_is_the_overall_one() -> None:
    bound = Bound(budget="b", metric="m", at_most=1.0)
    good, bad, open_ = (judge(bound, [measured(*i)]) for i in ((0, 0.5), (2, 3), (0, 3)))
    assert overall([]) is Verdict.PASS
    assert overall([good, open_]) is Verdict.UNDECIDED
    assert overall([good, open_, bad]) is Verdict.FAIL
