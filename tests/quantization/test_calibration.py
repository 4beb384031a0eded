"""Statistics of a graph's tensors over its inputs, and what is made of them: smoothing, biases, sensitivity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from proto_passes import (
    SwitchedGraph,
    collect,
    correct_biases,
    graph_of,
    place_linears,
    smooth,
    static_graph,
    with_outliers,
    with_ranges,
)
from this_host import WEIGHT_BITS

from vlm_edge.backends.lowering import lowering_of
from vlm_edge.errors import VlmEdgeError
from vlm_edge.graphs.passes.place_pairs import PlaceLinears, SetRanges, quantized_tensors
from vlm_edge.graphs.passes.smooth import smoothable
from vlm_edge.quantization.calibration import Calibration, read_statistics
from vlm_edge.quantization.sensitivity import fewest_left_out, rank_layers, worst_sqnr_db
from vlm_edge.quantization.static import StaticSettings

WIDTH, HIDDEN = 32, 64
GRAPH = f"""<ir_version: 10, opset_import: ["" : 20]>
block (float[rows, tokens, {WIDTH}] x) => (float[rows, tokens, {WIDTH}] y) {{
  normed = LayerNormalization (x, gamma, beta)
  product = MatMul (normed, up)
  wide = Add (product, up_bias)
  active = Relu (wide)
  narrow = MatMul (active, down)
  with_bias = Add (narrow, down_bias)
  y = Add (with_bias, SKIP)
}}"""


def model(skip: str = "x", seed: int = 0) -> onnx.ModelProto:
    """An MLP behind a norm; ``skip``: what is added to its result, ``normed`` as in BERT."""
    generator = np.random.default_rng(seed)
    values = {
        "gamma": generator.uniform(0.5, 1.5, WIDTH),
        "beta": generator.normal(size=WIDTH) / 5,
        "up": generator.normal(size=(WIDTH, HIDDEN)) / 5,
        "up_bias": generator.normal(size=HIDDEN),
        "down": generator.normal(size=(HIDDEN, WIDTH)) / 8,
        "down_bias": generator.normal(size=WIDTH),
    }
    result: onnx.ModelProto = parser.parse_model(GRAPH.replace("SKIP", skip))
    for node in result.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    for name, value in values.items():
        result.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    onnx.checker.check_model(result, full_check=True)
    return result


def feeds(count: int, seed: int = 1) -> list[dict[str, NDArray[np.float32]]]:
    """Of different lengths, and with a mean."""
    generator = np.random.default_rng(seed)
    return [{"x": generator.normal(0.3, 1, (1, 2 + n % 3, WIDTH)).astype(np.float32)} for n in range(count)]


def run(graph: onnx.ModelProto, feed: dict[str, Any], names: list[str] | None = None) -> list[NDArray[Any]]:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(names, feed)]


def constants(graph: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}


def test_statistics_are_numpy_s_over_all_inputs() -> None:
    graph = model()
    found = collect(graph, feeds(5), ["x", "active"], frozenset({"active"}), 1)
    values = constants(graph)
    rows = []
    for feed in feeds(5):
        centred = feed["x"] - feed["x"].mean(-1, keepdims=True)
        normed = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5) * values["gamma"] + values["beta"]
        rows.append(np.maximum(normed @ values["up"] + values["up_bias"], 0).reshape(-1, HIDDEN))
    active = np.concatenate(rows)
    np.testing.assert_allclose(found["active"].mean, active.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found["active"].largest, np.abs(active).max(axis=0), atol=1e-5)
    assert found["active"].rows == len(active)
    assert found["active"].histogram.counts.sum() == active.size
    inputs = np.concatenate([feed["x"].ravel() for feed in feeds(5)])
    assert (found["x"].histogram.low, found["x"].histogram.high) == (inputs.min(), inputs.max())
    assert found["x"].rows == 0


def test_statistics_are_taken_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "statistics.npz"
    first = Calibration(feeds(4), path=path)
    wanted = first.statistics(graph_of(model()), ["normed", "active"], frozenset({"normed"}))
    assert first.collected == 2
    again = Calibration([], path=path)  # nothing to calibrate on, and nothing needed
    got = again.statistics(graph_of(model()), ["normed", "active"], frozenset({"normed"}))
    assert again.collected == 0
    for name, statistics in wanted.items():
        np.testing.assert_array_equal(got[name].histogram.counts, statistics.histogram.counts)
        np.testing.assert_array_equal(got[name].largest, statistics.largest)
        np.testing.assert_array_equal(got[name].mean, statistics.mean)
    more = Calibration(feeds(4), path=path)
    more.statistics(graph_of(model()), ["normed", "wide"])
    assert more.collected == 1
    path.write_bytes(path.read_bytes()[:-40])
    assert read_statistics(path) == {}


def test_a_second_target_takes_no_statistics(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    counts = []
    for form in (
        lowering_of("onnxruntime", "x86-vnni"),
        lowering_of("onnxruntime", "arm"),
        lowering_of("onnxruntime", "x86"),
    ):
        calibration = Calibration(feeds(4), path=path)
        static_graph(model(), calibration, feeds(2, seed=5), form, StaticSettings())
        counts.append(calibration.collected)
    assert counts == [2, 0, 0]


def test_values_that_are_not_finite_are_named() -> None:
    bad = [{"x": np.full((1, 2, WIDTH), np.nan, np.float32)}]
    with pytest.raises(VlmEdgeError, match="tensor active: a value is not finite"):
        collect(model(), bad, ["active"], frozenset(), 1)


@pytest.mark.parametrize("skip", ["x", "normed"])
def test_smoothing_and_outliers_keep_the_function(skip: str) -> None:
    graph = model(skip)
    outliers, norms = with_outliers(graph)
    assert norms == 1
    (place,) = smoothable(graph_of(outliers))
    statistics = collect(outliers, feeds(4), [place.tensor], frozenset({place.tensor}), 1)
    smoothed, changed = smooth(outliers, {place.tensor: statistics[place.tensor].largest})
    assert changed == {"normed"}
    feed = feeds(1, seed=9)[0]
    (wanted,) = run(graph, feed)
    for other in (outliers, smoothed):
        np.testing.assert_allclose(run(other, feed)[0], wanted, rtol=1e-4, atol=1e-4)
    before, after = (
        collect(each, feeds(4), ["normed"], frozenset({"normed"}), 1)["normed"].largest for each in (outliers, smoothed)
    )
    assert before.max() / np.median(before) > 30
    assert after.max() / np.median(after) < 10
    assert smoothable(graph_of(graph))[0].free is (skip == "x")
    muls = [sum(node.op_type == "Mul" for node in each.graph.node) for each in (outliers, smoothed)]
    assert muls == ([0, 0] if skip == "x" else [1, 1])


def test_smoothing_that_costs_time_is_for_outliers_only() -> None:
    graph = model("normed")
    largest = {"normed": np.ones(WIDTH, np.float32)}
    assert smooth(graph, largest)[1] == frozenset()
    largest["normed"][3] = 100
    assert smooth(graph, largest)[1] == {"normed"}


def quantized(graph: onnx.ModelProto) -> onnx.ModelProto:
    placed = graph_of(graph)
    PlaceLinears(WEIGHT_BITS)(placed)
    tensors = [name for group in quantized_tensors(placed) for name in group]
    assert tensors == ["normed", "active"]
    SetRanges(dict.fromkeys(tensors, (-6.0, 6.0)), symmetric=False)(placed)
    return ir.to_proto(placed)


def test_a_corrected_bias_takes_the_weight_s_mean_error_back() -> None:
    graph = model()
    placed = quantized(graph)
    means = {
        name: each.mean
        for name, each in collect(graph, feeds(9), ["normed", "active"], frozenset({"normed", "active"}), 1).items()
    }
    corrected, nodes = correct_biases(graph, placed, means, means)
    assert nodes == ["MatMul_product", "MatMul_narrow"]
    values = constants(corrected)
    levels, scales = values["up_int8"], values["up_scale"]
    error = constants(graph)["up"] - levels.astype(np.float32) * scales
    np.testing.assert_allclose(
        values["wide_corrected_bias"], constants(graph)["up_bias"] + means["normed"] @ error, atol=1e-6
    )


def test_a_correction_that_helps_no_held_out_input_is_left_out() -> None:
    graph = model()
    means = {"normed": np.ones(WIDTH, np.float32), "active": np.ones(HIDDEN, np.float32)}
    opposite = {name: -mean for name, mean in means.items()}
    same, nodes = correct_biases(graph, quantized(graph), means, opposite)
    assert nodes == []
    assert "wide_corrected_bias" not in constants(same)


def test_a_switched_graph_is_the_float_or_the_quantized_one() -> None:
    graph = model()
    placed = quantized(graph)
    switched = SwitchedGraph(graph, placed, 1)
    feed = feeds(1, seed=3)[0]
    nodes = {layer.node for layer in switched.layers}
    assert nodes == {"MatMul_product", "MatMul_narrow"}
    np.testing.assert_allclose(switched.run(feed, ())["y"], run(graph, feed)[0], atol=1e-5)
    np.testing.assert_allclose(switched.run(feed, nodes)["y"], run(placed, feed)[0], atol=1e-4)
    alone = place_linears(graph, weight_bits=WEIGHT_BITS, left_out=frozenset({"MatMul_narrow"}))
    alone = with_ranges(alone, {"normed": (-6.0, 6.0)}, symmetric=False)
    np.testing.assert_allclose(switched.run(feed, {"MatMul_product"})["y"], run(alone, feed)[0], atol=1e-4)


def test_the_worst_layer_is_first_and_leaves_first() -> None:
    graph = model()
    placed = place_linears(graph, weight_bits=WEIGHT_BITS)
    placed = with_ranges(placed, {"normed": (-4.0, 4.0), "active": (-900.0, 900.0)}, symmetric=False)
    switched, inputs = SwitchedGraph(graph, placed, 1), feeds(3, seed=4)
    ranked = rank_layers(switched, inputs)
    assert [each.layer.node for each in ranked] == ["MatMul_narrow", "MatMul_product"]
    references = switched.references(inputs)
    everything = worst_sqnr_db(switched.agreement(inputs, references, {"MatMul_narrow", "MatMul_product"}))
    assert everything <= ranked[0].sqnr_db + 0.5
    assert fewest_left_out(switched, ranked, inputs, everything - 1) == []
    assert fewest_left_out(switched, ranked, inputs, everything + 3) == ["MatMul_narrow"]
    assert len(fewest_left_out(switched, ranked, inputs, 150)) == 2
