from __future__ import annotations

from pathlib import Path

import pytest

from vlm_edge.core.budget import Budgets
from vlm_edge.data.dataset import Dataset, Sample, TaskKind
from vlm_edge.evaluation.stage_metric import budget_faults
from vlm_edge.statistics.intervals import tango_interval


def dataset(images: int, kind: TaskKind = "vqa", questions: int = 2) -> Dataset:
    samples = tuple(
        Sample(f"{image}-{each}", Path(f"{image}.png"), "what?", ("red",), ("color",) if image % 2 else ("shape",))
        for image in range(images)
        for each in range(questions)
    )
    return Dataset("tiny", kind, "test", samples, "digest")


def faults(images: int, accuracy: dict[str, object], kind: TaskKind = "vqa") -> dict[str, str]:
    return dict(budget_faults(dataset(images, kind), Budgets.model_validate({"accuracy": accuracy})))


@pytest.mark.parametrize("points", [5.0, 0.05])
def test_ten_images_cannot_decide_a_drop_and_the_needed_number_could(points: float) -> None:
    found = faults(10, {"max_drop_pt": points})
    needed = {5.0: 73, 0.05: 7680}[points]
    assert f"{needed:,} are needed for {points:g}" in found["accuracy.max_drop_pt"]
    assert 100 * tango_interval(0, 0, needed).high <= points < 100 * tango_interval(0, 0, needed - 1).high
    assert faults(needed, {"max_drop_pt": points}) == {}


def test_a_ratio_and_a_share_are_held_to_the_set_too() -> None:
    found = faults(100, {"min_ratio": 0.999, "at_least": 0.99})
    assert set(found) == {"accuracy.min_ratio", "accuracy.at_least"}
    assert "even if every answer is right" in found["accuracy.at_least"]
    assert faults(100, {"min_ratio": 0.9, "at_least": 0.9}) == {}


def test_no_drop_at_all_can_not_be_shown_by_any_number() -> None:
    assert "no number of samples" in faults(10_000, {"max_drop_pt": 0.0})["accuracy.max_drop_pt"]


def test_a_slice_is_counted_by_its_own_images() -> None:
    found = faults(90, {"slices": {"color": {"max_drop_pt": 5.0}, "colour": {"max_drop_pt": 5.0}}})
    assert found["accuracy.slices.color.max_drop_pt"].startswith("45 images")
    assert "did you mean 'color'?" in found["accuracy.slices.colour"]


def test_an_unknown_metric_is_named_and_a_known_one_is_not() -> None:
    found = faults(500, {"metrics": {"f1": {"max_drop_pt": 2.0}, "f2": {"max_drop_pt": 2.0}}}, "hallucination")
    assert set(found) == {"accuracy.metrics.f2"}


def test_scores_that_are_no_shares_have_no_smallest_drop() -> None:
    assert faults(10, {"max_drop_pt": 1.0, "at_least": 1.2}, "captioning") == {}
