from __future__ import annotations

import pytest

from vlm_edge.core.budget import Bound, judge
from vlm_edge.core.measurement import Measurement
from vlm_edge.report.numbers import (
    bound_text,
    interval_text,
    judgement_text,
    measurement_text,
    named_format,
    value_text,
)


def measured(metric: str, low: float, value: float, high: float, n: int = 100, unit: str = "x") -> Measurement:
    return Measurement(metric=metric, low=low, value=value, high=high, n=n, unit=unit)


@pytest.mark.parametrize(
    ("measurement", "text"),
    [
        (measured("accuracy", 0.9802, 0.9831, 0.986, 9673, "share"), "98.31 % [98.02, 98.60], n 9673"),
        (measured("accuracy[color]", 0.5, 0.75, 1.0, 4, "share"), "75.00 % [50.00, 100.00], n 4"),
        (measured("latency_p90_ms", 4.0, 4.12, 4.3, 400, "ms"), "4.12 ms [4.00, 4.30], n 400"),
        (measured("size_bytes", 3.9e6, 3.9e6, 3.9e6, 1, "B"), "3.90 MB, exact"),
        (measured("accuracy_drop_pt", 0, 0, 0, 9673, "pt"), "0.00 pt [0.00, 0.00], n 9673"),
        (measured("f1_drop_pt[animals]", 0.1, 0.25, 0.5, 50, "pt"), "0.25 pt [0.10, 0.50], n 50"),
        (measured("recall_at_1[image-to-text]", 0.4, 0.5, 0.6, 50, "share"), "50.00 % [40.00, 60.00], n 50"),
        (measured("accuracy", 1.1, 1.2, 1.3, 50, "CIDEr"), "1.2000 CIDEr [1.1000, 1.3000], n 50"),
        (measured("cost_per_1000", 0.01, 0.0125, 0.02, 50, "EUR"), "0.01250 EUR [0.01000, 0.02000], n 50"),
        (measured("macs", 3e9, 3e9, 3e9, 1, ""), "3.000 G, exact"),
        (measured("unheard_of", 1, 2, 3, 9, "widgets"), "2.0000 widgets [1.0000, 3.0000], n 9"),
        (measured("mcnemar_p", 0.04, 0.04, 0.04, 24, "p"), "0.0400, exact"),
    ],
)
def test_every_number_has_its_unit_interval_and_n(measurement: Measurement, text: str) -> None:
    assert measurement_text(measurement) == text


def test_only_counts_are_exact() -> None:
    assert interval_text(measured("size_ratio", 0.1, 0.1, 0.1)) == "exact"
    assert interval_text(measured("latency_p50_ms", 3, 3, 3)) == "[3.00, 3.00]"


def test_thousands_are_separated() -> None:
    assert value_text(measured("latency_p99_ms", 1, 12345.678, 2)) == "12,345.68"


def test_a_bound_is_shown_in_the_unit_of_its_metric() -> None:
    judgement = judge(Bound(budget="size.max_mb", metric="size_bytes", at_most=31.5e6), [])
    assert bound_text(judgement) == "<= 31.5 MB"
    assert bound_text(judge(Bound(budget="x", metric="unheard_of", at_least=2), [])) == ">= 2"


def test_a_value_next_to_its_bound_is_seen_on_its_side() -> None:
    bound = Bound(budget="accuracy.max_drop_pt", metric="accuracy_drop_pt", at_most=1.0)
    found = measured("accuracy_drop_pt", 0.6, 0.8, 1.0004, 9673, "pt")
    text = judgement_text(judge(bound, [found]))
    assert text.startswith("accuracy.max_drop_pt: 0.8 pt [0.6, 1.0004], n 9673; the bound is <= 1 pt; ")


def test_what_was_not_measured_says_why() -> None:
    bound = Bound(budget="latency.p90_ms", metric="latency_p90_ms", at_most=5)
    text = judgement_text(judge(bound, [], unmeasurable="TensorRT is not on this host"))
    assert text == "latency.p90_ms: TensorRT is not on this host; the bound is <= 5 ms"


def test_what_is_undecided_says_how_many_samples_would_decide_it() -> None:
    found = measured("accuracy_drop_pt", -0.5, 0.5, 1.5, 100, "pt")
    judgement = judge(Bound(budget="accuracy.max_drop_pt", metric="accuracy_drop_pt", at_most=1.0), [found])
    assert judgement.needed_n is not None
    assert judgement_text(judgement).count(f"{judgement.needed_n:,} samples") == 1
    silent = judgement.model_copy(update={"reason": None, "needed_n": 38416})
    assert judgement_text(silent).endswith("; about 38,416 samples would decide it")


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("accuracy[color]", "accuracy, color"),
        ("latency_p50_ms[vision_encoder]", "p50, vision_encoder"),
        ("recall_at_5[text-to-image]", "R@5, text-to-image"),
        ("f1_drop_pt", "F1 drop"),
        ("precision_ratio[a]", "precision kept, a"),
        ("size_ratio", "size ratio"),
        ("yes_ratio", "yes ratio"),
        ("unheard_of[x]", "unheard_of[x]"),
    ],
)
def test_a_metric_is_named_in_words(metric: str, title: str) -> None:
    assert named_format(metric).title == title
