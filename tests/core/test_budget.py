from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.power import normal_power

from vlm_edge.core.budget import Bound, Budgets, Verdict, bounds_of, judge, memory_bound, overall, samples_to_decide
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.target import Target


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


def test_the_bounds_of_a_target_without_memory_are_none() -> None:
    target = Target.model_validate({"name": "box", "engine": "openvino"})
    assert memory_bound(target, {}) == []
    (bound,) = memory_bound(target.model_copy(update={"memory_mb": 512}), {})
    assert judge(bound, [measured(500, 512, "peak_rss_mb")]).verdict is Verdict.PASS
    assert judge(bound, [measured(500, 513, "peak_rss_mb")]).verdict is Verdict.UNDECIDED
    (bound,) = memory_bound(target.model_copy(update={"memory_mb": 512}), {"on_gpu": True})
    assert judge(bound, [measured(1, 1, "peak_rss_mb")]).verdict is Verdict.NOT_MEASURED


def test_the_worst_verdict_is_the_overall_one() -> None:
    bound = Bound(budget="b", metric="m", at_most=1.0)
    good, bad, open_ = (judge(bound, [measured(*i)]) for i in ((0, 0.5), (2, 3), (0, 3)))
    assert overall([]) is Verdict.PASS
    assert overall([good, open_]) is Verdict.UNDECIDED
    assert overall([good, open_, bad]) is Verdict.FAIL


def test_slices_and_metrics_have_bounds_of_their_own() -> None:
    accuracy = {
        "max_drop_pt": 1,
        "slices": {"color": {"min_ratio": 0.99}},
        "metrics": {"recall_at_1[a]": {"at_least": 0.5}},
    }
    found = bounds_of(Budgets.model_validate({"accuracy": accuracy}))
    assert [(bound.budget, bound.metric, str(bound)) for bound in found] == [
        ("accuracy.max_drop_pt", "accuracy_drop_pt", "<= 1"),
        ("accuracy.slices.color.min_ratio", "accuracy_ratio[color]", ">= 0.99"),
        ("accuracy.metrics.recall_at_1[a].at_least", "recall_at_1[a]", ">= 0.5"),
    ]


def test_a_stage_changes_one_slice_and_keeps_the_others() -> None:
    common = Budgets.model_validate(
        {"accuracy": {"slices": {"color": {"max_drop_pt": 1}, "shape": {"max_drop_pt": 2}}}}
    )
    own = Budgets.model_validate({"accuracy": {"slices": {"shape": {"max_drop_pt": 5}}}})
    merged = common.overridden(own)
    assert merged.accuracy is not None
    assert {name: bounds.max_drop_pt for name, bounds in merged.accuracy.slices.items()} == {"color": 1, "shape": 5}


def test_an_undecided_verdict_says_how_many_samples_would_decide() -> None:
    bound = Bound(budget="b", metric="m", at_most=1.0)
    measurement = Measurement(metric="m", low=0.0, value=0.5, high=1.5, n=1000, unit="")
    judgement = judge(bound, [measurement])
    assert judgement.verdict is Verdict.UNDECIDED
    assert judgement.needed_n == samples_to_decide(measurement, 1.0)
    assert f"{judgement.needed_n:,} samples" in (judgement.reason or "")
    assert judgement.reason == (
        f"the interval holds the bound; these 1,000 samples show <= 1.5; about {judgement.needed_n:,} samples would "
        "decide it"
    )
    on_the_bound = measurement.model_copy(update={"value": 1.0})
    assert judge(bound, [on_the_bound]).needed_n is None


@pytest.mark.parametrize(
    ("low", "value", "high", "side", "shown"),
    [
        (0.1, 0.98, 1.3041, {"at_most": 1.0}, "<= 1.31"),  # rounded so that the interval keeps it
        (-0.4, 0.0, 1234.5, {"at_most": 1.0}, "<= 1240"),
        (0.98765, 0.9899, 1.0, {"at_least": 0.99}, ">= 0.987"),
        (-0.01234, 0.0099, 0.02, {"at_least": 0.01}, ">= -0.0124"),
        (0.0, 0.0099, 0.02, {"at_least": 0.01}, ">= 0"),
    ],
)
def test_an_open_verdict_says_what_these_samples_show(
    low: float, value: float, high: float, side: dict[str, float], shown: str
) -> None:
    """600 photos are not told to become 60,000: the bound that they keep is named instead."""
    bound = Bound.model_validate({"budget": "b", "metric": "m", **side})
    judgement = judge(bound, [interval_of(low, value, high, 600)])
    assert (judgement.verdict, judgement.needed_n) == (Verdict.UNDECIDED, None)
    assert judgement.reason == f"the interval holds the bound; these 600 samples show {shown}"
    kept = {"at_most" if "<" in shown else "at_least": float(shown[3:])}
    again = Bound.model_validate({"budget": "b", "metric": "m", **kept})
    assert judge(again, [interval_of(low, value, high, 600)]).verdict is Verdict.PASS


def interval_of(low: float, value: float, high: float, n: int) -> Measurement:
    return Measurement(metric="m", low=low, value=value, high=high, n=n, unit="")


@settings(max_examples=40, deadline=None)
@given(st.floats(0.2, 5), st.floats(0.02, 0.5))
def test_so_many_samples_decide_in_nine_sets_of_ten(spread: float, distance: float) -> None:
    """Against statsmodels: the chance that the end of a two-sided 95% interval clears the limit."""

    def power(n: int) -> float:
        return float(normal_power(distance / spread, n, 0.025, alternative="larger", sigma=1.0))

    half = 1.959963984540054 * spread / math.sqrt(50)
    interval = interval_of(1 - half, 1.0, 1 + half, 50)
    needed = samples_to_decide(interval, 1 - distance)
    assert needed is not None
    assert needed == samples_to_decide(interval, 1 + distance)
    assert power(needed) >= 0.9 - 1e-9
    if needed > 1:
        assert power(needed - 1) < 0.9


def test_no_number_of_samples_decides_a_value_on_its_limit() -> None:
    assert samples_to_decide(interval_of(0.8, 0.9, 1.0, 100), 0.9) is None
    assert samples_to_decide(interval_of(0.8, 0.9, 1.0, 100), 0.9 + 1e-7) is None
    assert samples_to_decide(interval_of(0.9, 0.9, 0.9, 100), 0.8) is None


@pytest.mark.parametrize(("noise", "verdict"), [(0.02, Verdict.PASS), (0.12, Verdict.UNDECIDED)])
def test_a_bound_closer_than_the_control_resolves_is_undecided(noise: float, verdict: Verdict) -> None:
    control = [Measurement(metric="latency_p90_control", low=1 / (1 + noise), value=1.0, high=1.0, n=64, unit="x")]
    found = [Measurement(metric="latency_p90_ms", low=9.4, value=9.5, high=9.6, n=64, unit="ms")]
    bound = Bound(budget="latency.p90_ms", metric="latency_p90_ms", at_most=10.0)
    assert judge(bound, found, control=control).verdict is verdict
