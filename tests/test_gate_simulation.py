"""Gates on simulated data of known truth: short runs of benchmarks/gate_accuracy.py and gate_latency.py."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import normal_power

from vlm_edge.statistics.intervals import paired_change

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def simulation():
    yield from loaded("gate_accuracy")


@pytest.fixture(scope="module")
def latency():
    yield from loaded("gate_latency")


@pytest.mark.parametrize("spread", [0.02, 0.4])
def test_a_latency_measured_on_until_it_is_decided_still_holds_the_truth(latency, spread):
    draws = np.exp(spread * np.random.default_rng(1).normal(size=(500, 96)))
    ends = [latency._simulated(row, latency.LatencySettings(), 18)[0] for row in draws]
    held = sum(end.low <= 1 <= end.high for end in ends)
    wrong = [sum(end.low >= 1 for end in ends), sum(end.high < 1 for end in ends)]  # a bound at the truth itself
    assert held >= stats.binom.ppf(1e-3, 500, 0.95)
    assert max(wrong) <= stats.binom.ppf(1 - 1e-3, 500, 0.025)


def test_an_engine_against_itself_never_fails_and_what_is_missed_never_passes(simulation):
    for world in (simulation.World("small", 200, 10), simulation.World("ten", 10, 1)):
        rows = simulation.against_itself(world, 24, seed=1) + simulation.too_fine(world, 24, seed=1)
        assert [row.event for row in rows if not row.met] == []
        assert [row.event[:4] for row in rows] == ["FAIL"] * 3 + ["PASS"] * 3


def test_a_drop_of_twice_the_bound_fails_on_as_many_images_as_were_planned(simulation):
    world = simulation.harmed("one question", 300, 1, 0.08, 0.4)
    large, passed, own, _ = simulation.power(world, 0.04, 30, seed=1)
    assert large.images > 2 * own.images
    assert large.count >= stats.binom.ppf(1e-3, 30, simulation.PLANNED)
    assert own.count < large.count
    assert passed.count == 0


def test_the_drops_interval_holds_the_truth_where_few_images_are_harmed(simulation):
    world = simulation.harmed("rare harm", 200, 10, 0.005, 0.5, shaky=0.0)
    assert [row for row in simulation.coverage(world, 60, seed=1) if not row.met] == []


def test_the_simulated_drop_and_accuracy_are_the_stated_ones(simulation):
    world = simulation.harmed("large", 60_000, 10, 0.02, 0.4)
    before, after = simulation.answers(world, np.random.default_rng(0))
    assert world.drop == pytest.approx(0.02)
    change = (before - after).mean(axis=1)
    assert change.mean() == pytest.approx(0.02, abs=4 * stats.sem(change))
    assert before.mean() == pytest.approx(simulation.ACCURACY, abs=4 * stats.sem(before.mean(axis=1)))


@pytest.mark.parametrize(("met", "code"), [(True, 0), (False, 1)])
def test_a_missed_bar_ends_with_1(simulation, monkeypatch, capsys, met, code):
    row = simulation.Row("A/A", "small", 200, 10, "FAIL", 3, 100, "<= 1%", met)
    monkeypatch.setattr(simulation, "simulate", lambda *_: [row])
    monkeypatch.setattr(sys, "argv", ["gate_accuracy.py"])
    assert simulation.main() == code
    assert ("MISSED" in capsys.readouterr().out) is not met
    monkeypatch.setattr(sys, "argv", ["gate_accuracy.py", "--json"])
    assert simulation.main() == code
    assert json.loads(capsys.readouterr().out)["rows"][0]["count"] == 3


def power_of_z_test(distance, spread, n):
    """The chance that the lower end of a two-sided 95% interval clears a bound, from statsmodels."""
    return normal_power(distance / spread, n, 0.025, alternative="larger", sigma=1.0)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.001, 0.05), st.floats(1.2, 3), st.floats(1, 4), st.floats(1, 6))
def test_samples_to_tell_gives_the_asked_power(simulation, bound, factor, churn, effect):
    drop = factor * bound
    changed = min(1.0, churn * drop)
    needed = simulation.samples_to_tell(bound, drop, changed, effect)
    spread = math.sqrt((changed - drop**2) * effect)
    assert power_of_z_test(drop - bound, spread, needed) >= 0.95 - 1e-9
    assert power_of_z_test(drop - bound, spread, needed - 1) < 0.95


def test_samples_to_tell_with_the_real_interval(simulation):
    """A drop of 4 points against a bound of 2: of independent samples, planned for 99%, nearly every set tells."""
    n = simulation.samples_to_tell(0.02, 0.04, 0.06, sure=0.99)
    generator = np.random.default_rng(5)
    found = 0
    for seed in range(60):
        change = generator.choice([1.0, -1.0, 0.0], n, p=[0.05, 0.01, 0.94])
        before = np.where(change == 0, 1.0, (change + 1) / 2)
        found += paired_change(before, before - change, np.arange(n), seed=seed, resamples=300).drop.low > 0.02
    assert found >= stats.binom.ppf(1e-4, 60, 0.99)
