"""Histograms that widen, and the ranges taken from them, against numpy on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vlm_edge.graphs.passes.place_pairs import parameters_of
from vlm_edge.quantizers.ranges import BINS, Histogram, RangeMethod, range_of

GENERATOR = np.random.default_rng(0)
NORMAL = GENERATOR.normal(size=200_000).astype(np.float32)


def histogram(*parts: NDArray[np.float32]) -> Histogram:
    result = Histogram()
    for part in parts:
        result.add(part)
    return result


def rounding_error(values: NDArray[np.float32], limits: tuple[float, float]) -> float:
    """Mean squared, of 8-bit levels over the range."""
    scale, zero = parameters_of(limits, symmetric=False)
    levels = np.clip(np.rint(values / scale) + zero, -128, 127)
    return float(np.square((levels - zero) * scale - values).mean())


@settings(max_examples=30, deadline=None)
@given(scales=st.lists(st.sampled_from([1e-3, 0.5, 1.0, 7.0, 300.0]), min_size=2, max_size=4))
def test_order_makes_no_difference_and_no_value_is_lost(scales: list[float]) -> None:
    parts = [NORMAL[:5000] * np.float32(scale) for scale in scales]
    one, other = histogram(*parts), histogram(*reversed(parts))
    np.testing.assert_array_equal(one.counts, other.counts)
    assert (one.reach, one.low, one.high) == (other.reach, other.low, other.high)
    everything = np.concatenate(parts)
    assert one.counts.sum() == everything.size
    assert (one.low, one.high) == (everything.min(), everything.max())
    edges = np.linspace(-one.reach, one.reach, BINS + 1)
    wanted, _ = np.histogram(everything.astype(np.float64), edges)
    np.testing.assert_array_equal(one.counts, wanted)


def test_minmax_holds_every_value_and_zero() -> None:
    assert range_of(histogram(NORMAL), "minmax") == (NORMAL.min(), NORMAL.max())
    low, high = range_of(histogram(np.abs(NORMAL) + 1), "minmax")
    assert (low, high) == (0.0, (np.abs(NORMAL) + 1).max())


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentiles_are_numpy_s(percentile: float) -> None:
    found = histogram(*np.split(NORMAL, 8))
    low, high = range_of(found, "percentile", percentile=percentile)
    width = 2 * found.reach / BINS
    assert low == pytest.approx(np.percentile(NORMAL, 100 - percentile), abs=3 * width)
    assert high == pytest.approx(np.percentile(NORMAL, percentile), abs=3 * width)


@pytest.mark.parametrize(("method", "far"), [("mse", 40.0), ("entropy", 200.0)])
def test_a_far_value_is_cut_off(method: RangeMethod, far: float) -> None:
    values = np.concatenate([NORMAL, np.float32([far])])
    low, high = range_of(histogram(values), method)
    assert 2.5 < high < 0.9 * far
    assert -6 < low < -2
    if method == "mse":
        assert rounding_error(values, (low, high)) < rounding_error(values, (values.min(), values.max()))


@pytest.mark.parametrize("values", [NORMAL, np.maximum(NORMAL, 0), NORMAL**3, np.concatenate([NORMAL, NORMAL * 9])])
def test_mse_is_about_the_best_range(values: NDArray[np.float32]) -> None:
    values = values[::20]
    low, high = range_of(histogram(values), "mse")
    whole = min(float(values.min()), 0.0), float(values.max())
    tried = [
        (whole[0] * left, whole[1] * right) for left in np.linspace(0.05, 1, 15) for right in np.linspace(0.05, 1, 15)
    ]
    best = min(rounding_error(values, limits) for limits in tried)
    assert rounding_error(values, (low, high)) <= 1.05 * best


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_symmetric_ranges_are(method: RangeMethod) -> None:
    low, high = range_of(histogram(np.maximum(NORMAL, -1)), method, symmetric=True)
    assert low == -high < 0


def test_what_is_always_zero_has_a_range() -> None:
    limits = range_of(histogram(np.zeros(100, np.float32)), "mse")
    assert limits == (0.0, 0.0)
    assert parameters_of(limits, symmetric=False) == (1.0, 0)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Histogram().add(np.array([1.0, np.nan], np.float32))
