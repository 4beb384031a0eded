"""Accuracy through real (tiny) engines, against answers that plain numpy gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny_bench import build_bench

from vlm_edge.core.artifact import digest_folder
from vlm_edge.core.stage import SilentProgress, TaskSpec
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import Outcomes, evaluate
from vlm_edge.processing.images import read_image
from vlm_edge.runtime import load_pipeline


class CountingProgress(SilentProgress):
    """Adds up what the bars are advanced by."""

    def __init__(self):
        self.total = 0.0

    def advance(self, steps=1.0, *, note=None):
        self.total += steps

    def bar(self, label, total):
        self.expected = total
        counter = self

        class Bar:
            def __enter__(self):
                return counter

            def __exit__(self, *error):
                return None

        return Bar()


def test_every_answer_is_that_of_plain_numpy(bench):
    progress = CountingProgress()
    outcomes = evaluate(bench.engine, bench.task, threads=1, progress=progress)
    assert dict(zip(outcomes.ids, outcomes.predictions, strict=True)) == {
        id: "" if answer == "nothing" else answer for id, answer in bench.answers.items()
    }
    wrong = [answer == "nothing" for answer in bench.answers.values()]
    assert outcomes.scores == {"accuracy": tuple(float(not each) for each in wrong)}
    assert len(outcomes.ids) == 84
    assert set(outcomes.groups) == {f"{number}.png" for number in range(21)}
    assert outcomes.groups == tuple(id.partition("#")[0] for id in outcomes.ids)
    assert set(outcomes.slices) == {("r0",), ("r1",)}
    assert outcomes.engine == digest_folder(bench.engine)
    assert progress.total == progress.expected == 21


def test_another_engine_gives_other_answers_and_json_keeps_them(bench):
    first, other = (evaluate(folder, bench.task, threads=1) for folder in (bench.engine, bench.other))
    assert first.ids == other.ids
    assert first.predictions != other.predictions
    assert Outcomes.model_validate(json.loads(json.dumps(other.to_json()))) == other


def test_a_limit_draws_whole_images(bench):
    outcomes = evaluate(bench.engine, bench.task, threads=1, limit=10)
    assert len(outcomes.ids) == 10
    assert set(outcomes.ids) < set(bench.answers)
    assert outcomes.data != evaluate(bench.engine, bench.task, threads=1).data


def test_classes_are_the_pipelines_argmax(dual_bench):
    outcomes = evaluate(dual_bench.engine, dual_bench.task, threads=1)
    pipeline = load_pipeline(dual_bench.engine, threads=1)
    images = [read_image(dual_bench.images / f"{number}.png") for number in range(20)]
    best = pipeline.classify(images, ["red", "green"], ["is it {}", "{}"]).argmax(axis=1)
    assert outcomes.predictions == tuple(["red", "green"][index] for index in best)
    assert outcomes.scores == {"accuracy": tuple(float(index == number % 2) for number, index in enumerate(best))}
    assert outcomes.task == "classification"


class TestUnreadableImages:
    @pytest.fixture
    def large(self, tmp_path):
        return build_bench(tmp_path, 100)

    def test_one_in_a_hundred_is_skipped_by_name(self, large):
        (large.images / "7.png").write_bytes(b"")
        outcomes = evaluate(large.engine, large.task, threads=1)
        assert {skipped.image for skipped in outcomes.skipped} == {"7.png"}
        assert [skipped.id for skipped in outcomes.skipped] == [id for id in large.answers if id.startswith("7.png#")]
        assert all("0 bytes" in skipped.reason and skipped.reason.startswith("7.png") for skipped in outcomes.skipped)
        assert set(outcomes.ids) | {skipped.id for skipped in outcomes.skipped} == set(large.answers)
        assert "7.png" not in outcomes.groups

    def test_more_than_one_in_a_hundred_is_an_error(self, large):
        (large.images / "7.png").write_bytes(b"")
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(large.images / "8.png")
        with pytest.raises(
            VlmEdgeError, match=r"2 of 100 test images can't be read, more than 1%; the first is .*7\.png"
        ):
            evaluate(large.engine, large.task, threads=1)


class TestRefusals:
    def test_a_task_of_another_kind(self, bench):
        with pytest.raises(VlmEdgeError, match="kind vqa, the recipe's task of kind classification"):
            evaluate(bench.engine, TaskSpec(kind="classification", data=bench.task.data))

    def test_a_corrupt_engine(self, bench):
        (bench.engine / "decoder.onnx").write_bytes(b"no graph")
        with pytest.raises(VlmEdgeError, match=r"decoder\.onnx"):
            evaluate(bench.engine, bench.task)

    def test_a_pipeline_that_cannot_do_the_task(self, bench, dual_bench):
        with pytest.raises(VlmEdgeError, match="vqa pipeline cannot do a task of kind classification") as caught:
            evaluate(bench.engine, dual_bench.task, threads=1)
        assert "it can do: " in (caught.value.hint or "")
        assert "vqa" in (caught.value.hint or "")
