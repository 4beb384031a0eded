"""One calibrated model on three targets: onnxruntime on x86, onnxruntime on aarch64 (under qemu), TensorRT's rules.

The pairs are calibrated once. Each target's graph is a rewriting of that one: scales are the same bits in all files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aarch64
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser
from proto_passes import lowered, misplaced, quantized_layers, static_graph, violations, with_node_names
from this_host import WEIGHT_BITS

from vlm_edge.backends.lowering import lowering_of
from vlm_edge.graphs.layers import QuantizedLayer
from vlm_edge.quantization.calibration import Calibration
from vlm_edge.quantization.static import StaticSettings
from vlm_edge.quantizers.affine import Agreement

WIDTH, WIDE = 48, 96
FORMS = {
    "x86": lowering_of("onnxruntime", "x86-vnni"),
    "aarch64": lowering_of("onnxruntime", "arm"),
    "tensorrt": lowering_of("tensorrt", "cuda"),
}
BLOCK = f"""<ir_version: 10, opset_import: ["" : 20]>
block (float[n, 7, {WIDTH}] x) => (float[n, 7, {WIDTH}] y) {{
  normed = LayerNormalization (x, gamma, beta)
  queries = MatMul (normed, query)
  keys = MatMul (normed, key)
  values = MatMul (normed, value)
  turned = Transpose <perm = [0, 2, 1]> (keys)
  scores = MatMul (queries, turned)
  scaled = Div (scores, root)
  weights = Softmax (scaled)
  context = MatMul (weights, values)
  product = MatMul (context, out)
  attended = Add (product, out_bias)
  middle = Add (attended, x)
  wide = MatMul (middle, up)
  wide_biased = Add (wide, up_bias)
  active = Gelu (wide_biased)
  narrow = MatMul (active, down)
  y = Add (narrow, middle)
}}"""


def block() -> onnx.ModelProto:
    """A transformer block: attention and MLP, with skip branches."""
    generator = np.random.default_rng(0)
    values = {name: generator.normal(size=(WIDTH, WIDTH)) / 7 for name in ("query", "key", "value", "out")}
    values |= {"up": generator.normal(size=(WIDTH, WIDE)) / 7, "down": generator.normal(size=(WIDE, WIDTH)) / 10}
    values |= {"gamma": np.ones(WIDTH), "beta": generator.normal(size=WIDTH) / 5, "root": np.array(WIDTH**0.5)}
    values |= {"out_bias": generator.normal(size=WIDTH) / 5, "up_bias": generator.normal(size=WIDE) / 5}
    model: onnx.ModelProto = parser.parse_model(BLOCK)
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return with_node_names(model)


FEEDS = [{"x": np.random.default_rng(seed).normal(size=(1, 7, WIDTH)).astype(np.float32)} for seed in range(12)]
HELD_OUT = {"x": np.random.default_rng(99).normal(size=(8, 7, WIDTH)).astype(np.float32)}


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    """One calibration, with symmetric ranges, lowered for every target; ``float`` is what was calibrated."""
    floating = block()
    static = static_graph(floating, Calibration(FEEDS), FEEDS[:2], FORMS["tensorrt"], StaticSettings())
    return {"float": floating} | {name: lowered(static.quantized, "int8", form) for name, form in FORMS.items()}


@pytest.fixture(scope="module")
def python() -> aarch64.Aarch64Python:
    try:
        return aarch64.assembled()
    except aarch64.UnavailableError as reason:
        pytest.skip(str(reason))


def run(model: onnx.ModelProto, feed: dict[str, NDArray[Any]], level: str = "ORT_ENABLE_ALL") -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def run_on_aarch64(
    python: aarch64.Aarch64Python, folder: Path, jobs: list[tuple[onnx.ModelProto, dict[str, NDArray[Any]]]]
) -> list[list[NDArray[Any]]]:
    """Every graph on its feed, in one process under qemu."""
    rows = []
    for index, (model, feed) in enumerate(jobs):
        paths = {name: str(folder / f"{index}.{name}") for name in ("graph", "feeds.npz", "outputs.npz")}
        onnx.save(model, paths["graph"])
        np.savez(paths["feeds.npz"], **feed)
        row = {name.removesuffix(".npz"): path for name, path in paths.items()}
        rows.append(row | {"level": "ORT_ENABLE_ALL"})
    (folder / "jobs.json").write_text(json.dumps(rows), encoding="utf-8")
    script = Path(__file__).parents[1] / "support" / "run_graphs.py"
    assert python.run(script, folder / "jobs.json").strip() == "aarch64"
    found = []
    for row in rows:
        with np.load(row["outputs"]) as outputs:
            found.append([outputs[name] for name in outputs.files])
    return found


def cosine(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    agreement = Agreement()
    agreement.add(wanted, got)
    return agreement.cosine


def layers(graphs: dict[str, onnx.ModelProto], target: str) -> dict[str, QuantizedLayer]:
    found = quantized_layers(graphs["float"], graphs[target])
    return {layer.output: layer for layer in found if layer.input is not None}


def test_scales_are_the_same_bits_in_all_three_files(graphs: dict[str, onnx.ModelProto]) -> None:
    found = {target: layers(graphs, target) for target in FORMS}
    by_input = {
        target: {layer.input.tensor: layer for layer in each.values() if layer.input} for target, each in found.items()
    }
    assert set(by_input["x86"]) == set(by_input["aarch64"]) == set(by_input["tensorrt"])
    assert {"normed", "context", "middle", "active"} <= set(by_input["x86"])
    for tensor, reference in by_input["tensorrt"].items():
        for target, zero_point in (("x86", 128), ("aarch64", 0)):
            layer = by_input[target][tensor]
            assert layer.input is not None
            assert reference.input is not None
            assert layer.input.scale.tobytes() == reference.input.scale.tobytes()
            assert int(layer.input.zero_point) == zero_point
            assert layer.weight is not None
            assert reference.weight is not None
    for target in ("x86", "aarch64"):
        wanted = sorted(layer.weight.tobytes() for layer in found["tensorrt"].values() if layer.weight is not None)
        assert sorted(each.weight.tobytes() for each in found[target].values() if each.weight is not None) == wanted


def test_asymmetric_scales_are_the_same_bits_for_both_signs_and_reach_as_far_for_tensorrt() -> None:
    floating = block()
    static = static_graph(floating, Calibration(FEEDS), FEEDS[:2], FORMS["x86"], StaticSettings())
    files = {"float": floating} | {name: lowered(static.quantized, "int8", form) for name, form in FORMS.items()}
    found = {target: layers(files, target) for target in FORMS}
    assert found["x86"].keys() == found["aarch64"].keys()
    symmetric = {layer.input.tensor: layer.input for layer in found["tensorrt"].values() if layer.input}
    for output, layer in found["x86"].items():
        other = found["aarch64"][output]
        assert layer.input is not None
        assert other.input is not None
        assert layer.input.scale.tobytes() == other.input.scale.tobytes()
        assert int(layer.input.zero_point) == int(other.input.zero_point) + 128
        step, zero_point = symmetric[layer.input.tensor].scale, int(layer.input.zero_point)
        reach = np.int16(max(255 - zero_point, zero_point))
        exact = layer.input.scale if zero_point == 128 else (layer.input.scale * reach / 127).astype(np.float32)
        assert step.tobytes() == exact.tobytes()
    if WEIGHT_BITS < 8:  # products of 8-bit weights saturate on this host
        return
    (x86, arm) = (run(files[target], HELD_OUT)[0] for target in ("x86", "aarch64"))
    np.testing.assert_array_equal(x86, arm)


def test_tensorrt_s_rules_hold(graphs: dict[str, onnx.ModelProto]) -> None:
    assert violations(graphs["tensorrt"]) == misplaced(graphs["tensorrt"]) == []
    assert {each.rule for each in violations(graphs["x86"])} >= {"operator"}


@pytest.mark.skipif(WEIGHT_BITS < 8, reason="products of 8-bit weights saturate on this host")
def test_all_targets_are_as_near_to_the_float_model(graphs: dict[str, onnx.ModelProto]) -> None:
    wanted = run(graphs["float"], HELD_OUT)[0]
    outputs = {target: run(graphs[target], HELD_OUT)[0] for target in FORMS}
    np.testing.assert_array_equal(outputs["x86"], outputs["aarch64"])
    for got in outputs.values():
        assert cosine(wanted, got) > 0.9995


def test_aarch64_gives_what_x86_gives(
    graphs: dict[str, onnx.ModelProto], python: aarch64.Aarch64Python, tmp_path: Path
) -> None:
    wanted = run(graphs["float"], HELD_OUT)[0]
    ((arm,),) = run_on_aarch64(python, tmp_path, [(graphs["aarch64"], HELD_OUT)])
    assert cosine(wanted, arm) > 0.9995
    if WEIGHT_BITS == 8:  # else products of 8-bit weights saturate on this host
        assert cosine(run(graphs["x86"], HELD_OUT)[0], arm) > 0.99999


def integer_sums(levels: NDArray[Any], weight: NDArray[np.int8], zero_point: NDArray[Any]) -> onnx.ModelProto:
    """(rows, in) levels -> (rows, out) int32: a layer's sums, before any scale."""
    rows, columns = levels.shape[0], weight.shape[1]
    kind = helper.np_dtype_to_tensor_dtype(levels.dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight", "zero_point"], ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", kind, levels.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [rows, columns])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(zero_point, "zero_point")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_integer_sums_are_equal_on_both_processors(
    graphs: dict[str, onnx.ModelProto], python: aarch64.Aarch64Python, tmp_path: Path
) -> None:
    """u8 on x86 and s8 on aarch64, with all levels there are, their ends too: the same int32 as numpy's int64.

    Weights have as many bits as this host's products take without saturating.
    """
    signed, expected = [], []
    generator = np.random.default_rng(5)
    constants = {each.name: numpy_helper.to_array(each) for each in graphs["aarch64"].graph.initializer}
    weights = [value for value in constants.values() if value.dtype == np.int8 and value.ndim == 2]
    assert len(weights) == 6
    for weight in (each >> (8 - WEIGHT_BITS) for each in weights):
        levels = generator.integers(-128, 128, (9, len(weight))).astype(np.int8)
        levels[0], levels[1] = -128, 127
        zero_point = np.array(generator.integers(-128, 128), np.int8)
        unsigned = (
            (levels.astype(np.int16) + 128).astype(np.uint8),
            (zero_point.astype(np.int16) + 128).astype(np.uint8),
        )
        exact = (levels.astype(np.int64) - int(zero_point)) @ weight.astype(np.int64)
        (x86,) = run(integer_sums(unsigned[0], weight, np.asarray(unsigned[1])), {"x": unsigned[0]})
        np.testing.assert_array_equal(x86, exact)
        signed.append((integer_sums(levels, weight, zero_point), {"x": levels}))
        expected.append(exact)
    for (arm,), exact in zip(run_on_aarch64(python, tmp_path, signed), expected, strict=True):
        np.testing.assert_array_equal(arm, exact)
