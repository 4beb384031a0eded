"""The worst regressed samples: which, in which order, and what is shown of them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.evaluation.evaluators import regressions, thumbnail
from vlm_edge.evaluation.outcomes import Outcomes

ANSWERS = {0: ("red",), 1: ("red", "blue", "blue"), 2: ("a", "b")}


@pytest.fixture
def dataset(tmp_path):
    """Three images of 400x200, two questions each."""
    samples = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (200, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        for ask in range(2):
            id = f"{number}#{ask}"
            samples.append(Sample(id, tmp_path / f"{number}.png", f"question {ask}?", ANSWERS[number]))
    return Dataset("toy", "vqa", "test", tuple(samples), "digest")


def outcomes(dataset, scores, word):
    n = len(dataset.samples)
    return Outcomes(
        task="vqa",
        engine=word,
        data="digest",
        ids=tuple(sample.id for sample in dataset.samples),
        groups=tuple(sample.image.name for sample in dataset.samples),
        scores={"accuracy": tuple(map(float, scores))},
        predictions=tuple(f"{word} {row}" for row in range(n)),
        slices=((),) * n,
    )


def test_only_what_fell_and_the_worst_first(dataset):
    before = outcomes(dataset, [1, 1, 1, 0, 0.6, 1], "old")
    after = outcomes(dataset, [0.7, 1, 0, 1, 0, 1], "new")
    found = regressions(before, after, dataset)
    assert [each["id"] for each in found] == ["1#0", "2#0", "0#0"]
    assert found[0] == {
        "id": "1#0",
        "image": "1.png",
        "text": "question 0?",
        "expected": "blue (2), red (1)",
        "baseline": "old 2",
        "candidate": "new 2",
        "score_before": 1.0,
        "score_after": 0.0,
        "thumbnail": thumbnail(dataset.samples[2].image),
    }
    assert [each["expected"] for each in found[1:]] == ["a, b", "red"]
    assert regressions(before, after, dataset, most=1) == found[:1]


def test_equal_losses_show_every_image_before_any_twice(dataset):
    before, after = outcomes(dataset, [1] * 6, "old"), outcomes(dataset, [0] * 6, "new")
    assert [each["id"] for each in regressions(before, after, dataset)] == ["0#0", "1#0", "2#0", "0#1", "1#1", "2#1"]
    assert regressions(after, before, dataset) == []


def test_a_thumbnail_is_the_image_made_small(dataset):
    path = dataset.samples[0].image
    header, data = thumbnail(path).split(",")
    assert header == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small, Image.open(path) as image:
        assert (small.format, small.size) == ("PNG", (160, 80))
        assert np.abs(np.asarray(small).mean((0, 1)) - np.asarray(image).mean((0, 1))).max() < 3


def test_an_image_that_is_gone_has_no_thumbnail(dataset, tmp_path):
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes(b"no image")
    found = regressions(outcomes(dataset, [1] * 6, "old"), outcomes(dataset, [0] * 6, "new"), dataset, most=3)
    assert [bool(each["thumbnail"]) for each in found] == [False, False, True]


def test_samples_that_only_one_side_has_are_left_alone(dataset):
    before, after = outcomes(dataset, [1] * 6, "old"), outcomes(dataset, [0] * 6, "new")
    fewer = Dataset("toy", "vqa", "test", dataset.samples[3:], "digest")
    assert {each["id"] for each in regressions(before, after, fewer)} == {"1#1", "2#0", "2#1"}
