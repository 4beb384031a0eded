"""Feeds that don't fit a component are refused by name; fitting ones are checked once."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_edge.backends.checks import FeedChecker, check_feed
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import TensorSpec

INPUTS = {
    "input_ids": TensorSpec(dtype="int64", shape=("batch", "tokens")),
    "features": TensorSpec(dtype="float32", shape=("batch", 4, 3)),
}


def feed(**changes: object) -> dict[str, np.ndarray]:
    good = {"input_ids": np.ones((2, 5), np.int64), "features": np.ones((2, 4, 3), np.float32)}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def test_fitting_feeds_pass_whatever_their_dynamic_sizes() -> None:
    checker = FeedChecker(INPUTS, "model.onnx")
    first = checker.check(feed())
    assert checker.check(feed()) == first
    assert checker.check(feed(input_ids=np.ones((2, 0), np.int64))) != first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": None}, "input 'input_ids' is missing"),
        ({"featurs": np.ones(1)}, "no input is called 'featurs'"),
        ({"input_ids": [[1, 2]]}, "is a list, not a numpy array"),
        ({"input_ids": np.ones((2, 5), np.int32)}, "expected int64 ['batch', 'tokens'], given int32 [2, 5]"),
        ({"input_ids": np.ones(5, np.int64)}, "given int64 [5]"),
        ({"features": np.ones((2, 4, 2), np.float32)}, "expected float32 ['batch', 4, 3], given float32 [2, 4, 2]"),
        ({"features": np.ones((3, 4, 3), np.float32)}, "but batch is 2 in 'input_ids'"),
    ],
)
def test_the_first_misfit_is_named(changes: dict[str, object], words: str) -> None:
    checker = FeedChecker(INPUTS, "model.onnx")
    checker.check(feed())
    for check in (checker.check, lambda given: check_feed(given, INPUTS, "model.onnx")):
        with pytest.raises(VlmEdgeError) as caught:
            check(feed(**changes))
        assert caught.value.message.startswith("model.onnx: ")
        assert words in caught.value.message
