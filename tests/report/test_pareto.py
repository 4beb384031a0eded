"""The Pareto picture: its front is right, and no label touches another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.core.budget import Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord
from vlm_edge.report.pareto import Box, Point, beaten, front, pareto_picture, pareto_points
from vlm_edge.report.scale import scale_over
from vlm_edge.report.views import metrics_of


def point(name: str, latency: float, accuracy: float, size: float | None = 1e6, role: str = "") -> Point:
    times = Measurement(metric="latency_p90_ms", low=latency * 0.9, value=latency, high=latency * 1.2, n=64, unit="ms")
    share = Measurement(
        metric="accuracy", low=accuracy - 0.01, value=accuracy, high=accuracy + 0.01, n=99, unit="share"
    )
    return Point(name, times, share, size, Verdict.PASS, role)


POINTS = st.lists(
    st.tuples(st.floats(0.5, 500), st.floats(0.01, 0.99), st.none() | st.floats(1e3, 1e9)), min_size=2, max_size=8
)


@given(POINTS)
@settings(max_examples=60)
def test_the_front_is_what_no_other_beats(values: list[tuple[float, float, float | None]]) -> None:
    points = [point(str(index), *each) for index, each in enumerate(values)]
    kept = front(points)
    for each in points:
        better = [
            other
            for other in points
            if other.latency.value <= each.latency.value
            and other.accuracy.value >= each.accuracy.value
            and (other.latency.value, other.accuracy.value) != (each.latency.value, each.accuracy.value)
        ]
        assert (each in kept) <= (not better)
        assert better or any(other.latency.value == each.latency.value for other in kept)
    assert [each.latency.value for each in kept] == sorted(each.latency.value for each in kept)
    assert not all(beaten(each, points) for each in points)


def label_boxes(points: list[Point], width: int, height: int, letter: float = 7.9) -> list[Box]:
    labels = pareto_picture(points, width, height).labels
    return [Box(each.x, each.y - 11, each.x + letter * len(each.text), each.y + 4) for each in labels]


@given(POINTS, st.sampled_from([(1040, 440), (360, 400)]))
@settings(max_examples=60)
def test_no_label_touches_another(values: list[tuple[float, float, float | None]], shape: tuple[int, int]) -> None:
    names = ["quantize-with-smoothing-and-dynamic-ranges", "baseline", "prune", "distill-2", "x", "abc", "compile", "é"]
    boxes = label_boxes([point(name, *each) for name, each in zip(names, values, strict=False)], *shape)
    assert len(boxes) == len(values)
    assert not any(one.meets(other) for index, one in enumerate(boxes) for other in boxes[:index])
    assert all(box.left >= 0 and box.right <= shape[0] and box.top >= 0 and box.bottom <= shape[1] for box in boxes)


def test_eight_variants_in_one_place_all_have_a_label() -> None:
    points = [point(f"a-rather-long-name-of-variant-{index}", 10.0, 0.9) for index in range(8)]
    for shape in ((1040, 440), (360, 400)):
        boxes = label_boxes(points, *shape)
        assert len(boxes) == 8
        assert not any(one.meets(other) for index, one in enumerate(boxes) for other in boxes[:index])


def test_a_larger_engine_that_is_no_better_is_hollow() -> None:
    points = [point("a", 1, 0.9, 1e6), point("b", 1, 0.9, 2e6), point("c", 2, 0.9, 0.5e6)]
    assert [beaten(each, points) for each in points] == [False, True, False]


def test_the_points_of_a_record(record: RunRecord) -> None:
    points = pareto_points(record)
    assert [each.name for each in points] == [variant.name for variant in record.variants]
    assert [each.role for each in points] == ["baseline", "", "", "", "best"]
    found = {each.metric: each.value for each in record.variants[1].measurements}
    baseline = metrics_of(record.variants[0])["latency_p90_ms"].value
    assert points[1].latency.value == pytest.approx(baseline / found["latency_p90_speedup"])
    assert points[1].size == found["size_bytes"]


def test_p50_takes_the_place_of_a_p90_that_is_missing(record: RunRecord) -> None:
    some = record.variants[1]
    kept = [each for each in some.measurements if each.metric != "latency_p90_ms"]
    changed = record.model_copy(
        update={"variants": [record.variants[0], some.model_copy(update={"measurements": kept}), *record.variants[2:]]}
    )
    assert {each.latency.metric for each in pareto_points(changed)} == {"latency_p50_ms"}


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=5), st.booleans())
def test_ticks_are_round_and_within(values: list[float], log: bool) -> None:
    scale = scale_over(values, 0, 100, log=log)
    ticks = scale.ticks(5)
    assert 1 <= len(ticks) <= 6
    assert all(scale.low * (1 - 1e-9) <= tick <= scale.high * (1 + 1e-9) or abs(tick) < 1e-9 for tick in ticks)
    assert ticks == sorted(ticks)
    assert all(0 <= scale.place(value) <= 100 for value in values)


@pytest.mark.parametrize(("low", "high", "ticks"), [(0.0, 9.7, [0, 2, 4, 6, 8]), (0.99, 1.013, [0.99, 1.0, 1.01])])
def test_ticks_of_known_scales(low: float, high: float, ticks: list[float]) -> None:
    assert scale_over([low, high], 0, 1, margin=0.0).ticks(5 if high > 2 else 3) == ticks


def test_numbers_of_the_axes_are_in_the_shown_unit(record: RunRecord) -> None:
    picture = pareto_picture(pareto_points(record), 1040, 440)
    assert picture.up_title == "accuracy (%)"
    assert picture.across_title == "latency p90 (ms, log)"
    shares = [float(text) for _, text in picture.up]
    assert shares
    assert all(90 < share <= 100 for share in shares)
