"""The samples that a stage measures the task's metric on: which they are, and that drops are those of budgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted_layers import write_colors, write_planted
from tiny_graphs import write_vqa

from vlm_edge.core.stage import SilentProgress, TaskSpec
from vlm_edge.data import load_dataset
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import compare, outcomes_of
from vlm_edge.evaluation.stage_metric import WITHOUT_A_BOUND, DrawnMetric
from vlm_edge.evaluation.tasks.base import Rows
from vlm_edge.runtime import load_pipeline
from vlm_edge.statistics.intervals import smallest_drop

METRIC = DrawnMetric()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskSpec:
    return write_colors(tmp_path_factory.mktemp("colors"), images=300)


def test_neither_test_nor_calibration_images_are_drawn(task: TaskSpec) -> None:
    calibrated = {sample.image for sample in load_dataset(task.data, "calibration").samples}
    tested = {sample.image for sample in load_dataset(task.data, "test").samples}
    drawn = METRIC.samples(task, max_drop_pt=5.0, images=1000, without=calibrated)
    images = {sample.image for sample in drawn.dataset.samples}
    assert (drawn.split, drawn.images, drawn.samples) == ("train", 284, 284)
    assert not images & calibrated
    assert not images & tested


def test_half_the_bound_is_left_for_answers_that_change(task: TaskSpec) -> None:
    drawn = METRIC.samples(task, max_drop_pt=5.0, images=None, without=())
    assert smallest_drop(drawn.images) <= 0.025 < smallest_drop(drawn.images - 1)
    assert METRIC.samples(task, max_drop_pt=None, images=None, without=()).images == WITHOUT_A_BOUND


def test_a_smaller_draw_is_part_of_a_larger_one_and_drawn_at_random(task: TaskSpec) -> None:
    small, large = (
        [each.id for each in METRIC.samples(task, max_drop_pt=None, images=count, without=()).dataset.samples]
        for count in (40, 80)
    )
    assert set(small) < set(large)
    assert large == [each.id for each in load_dataset(task.data, "train").samples if each.id in set(large)]
    assert large != [each.id for each in load_dataset(task.data, "train").samples][:80]


def test_without_a_train_split_the_calibration_split_is_drawn_from(tmp_path: Path) -> None:
    task = write_colors(tmp_path, images=100, split="calibration")
    used = [sample.image for sample in load_dataset(task.data, "calibration").samples][:20]
    drawn = METRIC.samples(task, max_drop_pt=5.0, images=None, without=used)
    assert (drawn.split, drawn.images) == ("calibration", 80)
    with pytest.raises(VlmEdgeError, match=r"no sample left"):
        METRIC.samples(
            task,
            max_drop_pt=None,
            images=None,
            without={sample.image for sample in load_dataset(task.data, "calibration").samples},
        )


def test_the_drop_is_that_of_the_evaluation(task: TaskSpec) -> None:
    drawn = METRIC.samples(task, max_drop_pt=None, images=200, without=())
    generator = np.random.default_rng(4)
    before = (generator.random(200) < 0.9).astype(float)
    after = np.where(generator.random(200) < 0.1, 1 - before, before)
    rows = [Rows(drawn.dataset.samples, {"accuracy": list(each)}, ["red"] * 200) for each in (before, after)]
    outcomes = [outcomes_of(drawn.dataset, each, name) for each, name in zip(rows, "ab", strict=True)]
    wanted = next(each for each in compare(*outcomes, seed=3) if each.metric == "accuracy_drop_pt")
    assert drawn.drop(*rows, seed=3) == wanted
    assert wanted.value == pytest.approx(100 * (before - after).mean())


def test_a_pipeline_of_another_kind_is_refused(task: TaskSpec, tmp_path: Path) -> None:
    drawn = METRIC.samples(task, max_drop_pt=None, images=30, without=())
    rows = drawn.outcomes(load_pipeline(write_planted(tmp_path / "graphs").path, threads=1), SilentProgress())
    assert list(rows.scores["accuracy"]) == [1.0] * 30
    write_vqa(tmp_path / "vqa")
    with pytest.raises(VlmEdgeError, match="colors: a vqa pipeline cannot do a task of kind classification"):
        drawn.outcomes(load_pipeline(tmp_path / "vqa", threads=1), SilentProgress())
