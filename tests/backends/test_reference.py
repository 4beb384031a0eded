"""When an engine counts as its graph: equal within bounds, or as near to the float graph as the INT8 graph is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from proto_passes import quantize_graph
from small_mobilevit import pictures, small_mobilevit
from tiny_graphs import component

from vlm_edge.backends import load_engine
from vlm_edge.backends.base import Engine, Feed
from vlm_edge.backends.compiling import float_engine
from vlm_edge.backends.onnxruntime.lowering import OnnxRuntimeLowering
from vlm_edge.backends.reference import MIN_COSINE, MOST_MORE_ERROR, ReferenceRuns, check_component
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import TensorSpec

SPEC = {"y": TensorSpec(dtype="float32", shape=("b", 1000)), "z": TensorSpec(dtype="float32", shape=("b", 10))}
FEEDS = [{"x": np.full(1, seed)} for seed in range(3)]


Reference = Callable[[Engine], ReferenceRuns]


class NoisyEngine:
    """The true outputs with noise on ``y``: its length is ``noise`` of the output's, its direction ``seed``'s."""

    name = "noisy"
    inputs: Mapping[str, TensorSpec] = {}
    outputs = SPEC

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        self.noise, self.seed = noise, seed

    def infer(self, feed: Feed) -> dict[str, NDArray[Any]]:
        run = int(feed["x"][0])
        true = np.random.default_rng(run).normal(size=(1, 1000))
        noise = np.random.default_rng((self.seed, run, 7)).normal(size=true.shape)
        return {"y": true + self.noise * noise, "z": true[:, :10]}


@pytest.fixture
def reference(tmp_path: Path) -> Callable[[Engine], ReferenceRuns]:
    def recorded(engine: Engine) -> ReferenceRuns:
        result = ReferenceRuns(tmp_path)
        for feed in FEEDS:
            result.keep(feed, engine.infer(feed))
        return result

    return recorded


def never() -> Iterator[dict[str, NDArray[Any]]]:
    raise AssertionError("the float graph isn't needed")


def true() -> Iterator[dict[str, NDArray[Any]]]:
    """The float graph's outputs."""
    return (NoisyEngine().infer(feed) for feed in FEEDS)


def cosine_of(noise: float) -> float:
    """Of a vector and the same with noise at a right angle to it."""
    return float(1 / np.sqrt(1 + noise**2))


class TestIntegers:
    def test_near_its_graph_no_float_graph_is_asked(self, reference: Reference) -> None:
        facts = check_component("net", NoisyEngine(0.02), reference(NoisyEngine()), never)
        assert facts == {"cosine": pytest.approx(cosine_of(0.02), abs=1e-4), "output": "y"}
        assert facts["cosine"] > MIN_COSINE

    def test_further_away_it_may_be_as_far_from_the_float_graph_as_its_graph_is(self, reference: Reference) -> None:
        """Rounding in other places: another noise of the same size."""
        facts = check_component("net", NoisyEngine(0.2, 1), reference(NoisyEngine(0.2, 2)), true)
        assert facts["cosine"] == pytest.approx(cosine_of(0.2) ** 2, abs=0.005)
        assert facts["cosine"] < MIN_COSINE
        assert facts["float_cosine"] == pytest.approx(cosine_of(0.2), abs=0.003)
        assert facts["graph_float_cosine"] == pytest.approx(cosine_of(0.2), abs=0.003)

    def test_nearer_to_the_float_graph_than_its_graph_is_better_still(self, reference: Reference) -> None:
        facts = check_component("net", NoisyEngine(), reference(NoisyEngine(0.2)), true)
        assert facts["float_cosine"] == 1.0

    @pytest.mark.parametrize(("graph", "engine"), [(0.2, 0.3), (0.01, 0.1), (0.0, 0.05)])
    def test_further_from_both_it_strays(self, reference: Reference, graph: float, engine: float) -> None:
        """1 - cosine is about noise^2 / 2."""
        assert engine**2 > MOST_MORE_ERROR * graph**2
        with pytest.raises(VlmEdgeError, match=r"compile: net: noisy strays from the graph: .*'float_cosine'"):
            check_component("net", NoisyEngine(engine, 1), reference(NoisyEngine(graph, 2)), true)

    def test_values_that_are_not_finite_stray(self, reference: Reference) -> None:
        with pytest.raises(VlmEdgeError, match="strays"):
            check_component("net", NoisyEngine(np.nan), reference(NoisyEngine(0.2)), true)


class TestFloat:
    def test_a_float_graph_is_held_to_its_largest_error(self, reference: Reference) -> None:
        facts = check_component("net", NoisyEngine(1e-5), reference(NoisyEngine()), None)
        assert 0 < facts["max_relative_error"] < 1e-4
        with pytest.raises(VlmEdgeError, match="relative error"):
            check_component("net", NoisyEngine(0.02), reference(NoisyEngine()), None)


def test_the_float_engine_of_a_graph_rounds_no_activation(tmp_path: Path) -> None:
    """It is nearer to the graph that was quantized than the INT8 graph is, and leaves no file."""
    form = OnnxRuntimeLowering(weight_bits=7)
    model = small_mobilevit()
    row = component(model, "net.onnx")
    (tmp_path / "scratch").mkdir()
    (feed,) = pictures(1, batch=4, seed=1)
    values = {}
    for name, graph in (("float", model), ("int8", quantize_graph(model, "int8", pictures(8), form))):
        onnx.save(graph, tmp_path / f"{name}.onnx")
    for name in ("float", "int8"):
        values[name] = float_engine(tmp_path / f"{name}.onnx", row, tmp_path / "scratch").infer(feed)["image_embeds"]
    wanted = values["float"]
    integer = load_engine("onnxruntime", tmp_path / "int8.onnx", row).infer(feed)["image_embeds"]
    assert 0 < np.linalg.norm(values["int8"] - wanted) < 0.8 * np.linalg.norm(integer - wanted)
    assert not list((tmp_path / "scratch").iterdir())
