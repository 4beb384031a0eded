"""Weights of 4 and 8 bits in blocks: bytes are held to a reading of the format in plain Python, kernels to numpy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from proto_passes import (
    block_linears,
    compress_blocks,
    in_float,
    integer_layers,
    quantize_graph,
    quantized_layers,
    quantized_ops,
    violations,
    with_forms,
)

from vlm_edge.backends.lowering import Lowering, lowering_of
from vlm_edge.errors import VlmEdgeError
from vlm_edge.quantizers.blocks import fitting_block, quantize_blocks, unpacked_blocks

Array = NDArray[Any]
ORT = lowering_of("onnxruntime", "x86-vnni")


def model_of(text: str, **constants: Array) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(model: onnx.ModelProto, **feed: Array) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def read_blocks(model: onnx.ModelProto, node: onnx.NodeProto) -> Array:
    """The weight (in, out) of a MatMulNBits, element by element as onnxruntime's ContribOperators.md says."""
    settings = {item.name: item.i for item in node.attribute}
    levels, scales, zeros = (constants(model)[name] for name in node.input[1:4])
    bits, size, per_byte = settings["bits"], settings["block_size"], 8 // settings["bits"]
    weight = np.zeros((settings["K"], settings["N"]))
    for row, column in np.ndindex(settings["K"], settings["N"]):
        block, place = divmod(row, size)
        level = int(levels[column, block, place // per_byte]) >> (bits * (place % per_byte)) & (2**bits - 1)
        zero = int(zeros[column, block // per_byte]) >> (bits * (block % per_byte)) & (2**bits - 1)
        weight[row, column] = scales[column, block] * (level - zero)
    return weight


def cosine(wanted: Array, found: Array) -> float:
    return float((wanted * found).sum() / (np.linalg.norm(wanted) * np.linalg.norm(found)))


def sqnr_db(wanted: Array, found: Array) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


@given(st.integers(1, 100), st.integers(1, 9), st.sampled_from([4, 8]), st.sampled_from([16, 32]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_element_is_within_half_a_step_or_clipped(
    rows: int, columns: int, bits: int, size: int, seed: int
) -> None:
    weight = random(rows, columns, seed=seed) * (np.arange(columns) % 3 > 0)
    blocks = quantize_blocks(weight, bits, size)
    steps = np.repeat(blocks.scales, size, axis=1)[:, :rows].T
    level = blocks.levels.reshape(columns, -1)[:, :rows].T
    inside = (level > 0) & (level < 2**bits - 1)
    error = np.abs(blocks.restored() - weight)
    assert (error[inside] <= 0.5001 * steps[inside]).all()
    assert (error <= 0.21 * 2**bits * steps).all()  # what is clipped: a fifth of the range at most
    levels, zero_points = blocks.packed()
    again = unpacked_blocks(levels, blocks.scales, zero_points, bits=bits, block_size=size, width=rows)
    np.testing.assert_array_equal(again.restored(), blocks.restored())
    assert (blocks.scales > 0).all()


def test_clipping_and_zero_points_lower_the_error() -> None:
    weight = random(96, 64) + 0.2
    padded = weight.T.reshape(64, 3, 32)
    scale = np.abs(padded).max(axis=2, keepdims=True) / 7
    symmetric = (np.clip(np.rint(padded / scale), -8, 7) * scale).reshape(64, 96).T
    low, high = padded.min(axis=2, keepdims=True), padded.max(axis=2, keepdims=True)
    step = (high - low) / 15
    whole = (
        ((np.clip(np.rint(padded / step) + np.rint(-low / step), 0, 15) - np.rint(-low / step)) * step)
        .reshape(64, 96)
        .T
    )
    found = quantize_blocks(weight, 4, 32).restored()
    assert sqnr_db(weight, found) > sqnr_db(weight, whole) + 0.1 > sqnr_db(weight, symmetric) + 0.5
    assert sqnr_db(weight, quantize_blocks(weight, 8, 128).restored()) > 40


@pytest.mark.parametrize(
    ("width", "size"), [(20, 32), (32, 32), (100, 128), (48, 64), (576, 64), (1536, 128), (70, 32)]
)
def test_blocks_are_as_large_as_pads_least(width: int, size: int) -> None:
    assert fitting_block(width, 128) == size
    assert fitting_block(width, 32) == 32


def test_a_weight_of_many_rows_is_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(40, 50)
    whole = quantize_blocks(weight, 4, 32)
    monkeypatch.setattr("vlm_edge.quantizers.blocks._CHUNK", 3 * 64)
    for found, wanted in zip(quantize_blocks(weight, 4, 32).packed(), whole.packed(), strict=True):
        np.testing.assert_array_equal(found, wanted)


LAYERS = {
    "matmul": ("y = MatMul (x, w)", (100, 24), False),
    "matmul and add": ("p = MatMul (x, w)\n y = Add (b, p)", (100, 24), True),
    "gemm": ("y = Gemm (x, w, b)", (100, 24), True),
    "transposed gemm": ("y = Gemm <transB = 1> (x, w, b)", (24, 100), True),
    "transposed gemm without bias": ("y = Gemm <transB = 1> (x, w)", (24, 100), False),
    "one block": ("y = MatMul (x, w)", (32, 40), False),
}


@pytest.mark.parametrize(("body", "shape", "biased"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("bits", [4, 8])
def test_kernels_multiply_by_the_weight_that_the_bytes_stand_for(
    bits: int, body: str, shape: tuple[int, int], biased: bool
) -> None:
    transposed = "transB" in body
    width, rows = shape[::-1] if transposed else shape
    bias = random(rows, seed=2)
    parts = {"w": random(*shape)} | ({"b": bias} if biased else {})
    floating = model_of(f"layer (float[n, {width}] x) => (float[n, {rows}] y) {{ {body} }}", **parts)
    model = block_linears(floating, bits=bits, largest_block=32)
    assert operators(model) == {"MatMulNBits": 1}
    (node,) = model.graph.node
    weight = read_blocks(model, node)
    x = random(3, width, seed=1)
    wanted = x @ weight + (bias if biased else 0)
    assert sqnr_db(wanted, run(model, x=x)) > 38  # the kernel rounds blocks of x to int8
    np.testing.assert_allclose(run(in_float(model), x=x), wanted, rtol=1e-4, atol=1e-4)
    assert sqnr_db(wanted, run(floating, x=x)) > {4: 18, 8: 40}[bits]
    (layer,) = quantized_layers(floating, model)
    assert layer.weight is not None
    np.testing.assert_allclose(layer.weight, weight, rtol=1e-6)
    original = parts["w"].T if transposed else parts["w"]
    assert layer.weight_sqnr_db == pytest.approx(sqnr_db(original, weight), abs=0.01)


def test_openvino_reads_the_same_blocks() -> None:
    openvino = pytest.importorskip("openvino")
    body, shape, _ = LAYERS["transposed gemm"]
    floating = model_of(
        f"layer (float[n, 100] x) => (float[n, 24] y) {{ {body} }}", w=random(*shape), b=random(24, seed=2)
    )
    model = block_linears(floating, bits=4, largest_block=32)
    x = random(3, 100, seed=1)
    wanted = x @ read_blocks(model, model.graph.node[0]) + random(24, seed=2)
    core = openvino.Core()
    precise = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", precise)
    np.testing.assert_allclose(compiled(x)[0], wanted, rtol=1e-4, atol=1e-4)


TIED = """tied (int64[n] ids, float[n, 48] x) => (float[n, 40] y, float[n, 40] z) {
  rows = Gather (table, ids)
  both = Add (rows, x)
  y = Gemm <transB = 1> (both, table)
  z = Gemm <transB = 1> (rows, table)
}"""


def test_a_tied_table_is_read_in_int8_and_multiplied_in_4_bits_stored_once() -> None:
    table = random(40, 48)
    floating = model_of(TIED, table=table)
    model = quantize_graph(floating, "int4-weights", [], ORT)
    assert operators(model) == {"GatherBlockQuantized": 1, "Add": 1, "MatMulNBits": 2}
    first, second = (node for node in model.graph.node if node.op_type == "MatMulNBits")
    assert first.input[1:4] == second.input[1:4]
    assert "table" not in constants(model)
    ids, x = np.array([3, 0, 39]), random(3, 48, seed=5)
    weight = read_blocks(model, first)
    assert sqnr_db((table[ids] + x) @ weight, run(model, ids=ids, x=x)) > 35


def test_small_weights_and_those_left_out_stay_float() -> None:
    text = "two (float[n, 48] x) => (float[n, 4] z) { y = MatMul (x, w)\n z = MatMul (y, v) }"
    floating = model_of(text, w=random(48, 48), v=random(48, 4))
    assert operators(block_linears(floating, bits=4, largest_block=32)) == {"MatMulNBits": 1, "MatMul": 1}
    assert operators(block_linears(floating, bits=4, largest_block=32, left_out=frozenset({"y"}))) == {"MatMul": 2}


def test_int8_blocks_have_a_float_form_and_4_bits_have_none() -> None:
    floating = model_of("one (float[n, 100] x) => (float[n, 48] y) { y = MatMul (x, w) }", w=random(100, 48))
    model = block_linears(floating, bits=8, largest_block=128)
    (layer,) = integer_layers(model)
    assert (layer.op_type, layer.weight, layer.forms) == ("MatMulNBits", (100, 48), ("blocks", "float"))
    in_products = with_forms(model, {layer.node: "float"})
    assert "MatMulNBits" not in operators(in_products)
    assert max(value.nbytes for value in constants(in_products).values() if value.dtype == np.float32) == 4 * 48
    x = random(2, 100, seed=1)
    np.testing.assert_allclose(run(in_products, x=x), x @ read_blocks(model, model.graph.node[0]), rtol=1e-4, atol=1e-4)
    assert integer_layers(block_linears(floating, bits=4, largest_block=32)) == []


STEP = """step (float[n, 48] x, float[n, past, 48] past_key_values) => (float[n, 48] y, float[n, past, 48] present) {
  y = MatMul (x, w)
  present = Identity (past_key_values)
}"""


@pytest.mark.parametrize(
    ("form", "text", "kernel"),
    [
        (ORT, STEP, {"MatMulNBits": 1}),
        (ORT, STEP.replace("past_key_values", "state"), {"Cast": 1, "Mul": 1, "MatMul": 1}),
        (lowering_of("onnxruntime", "x86"), STEP, {"Cast": 1, "Mul": 1, "MatMul": 1}),
        (lowering_of("openvino", "x86-vnni"), STEP, {"Cast": 1, "Mul": 1, "MatMul": 1}),
    ],
    ids=["decoder", "no cache", "no vnni", "openvino"],
)
def test_int8_weights_of_a_decoder_are_blocks_where_they_were_measured(
    form: Lowering, text: str, kernel: dict[str, int]
) -> None:
    model = quantize_graph(model_of(text, w=random(48, 48)), "int8-weights", [], form)
    assert operators(model) == {"Identity": 1, **kernel}


FOUR = """four (float[n, 128] x) => (float[n, 24] y, float[n, 16] z) {
  p = MatMul (x, w)
  y = Add (p, b)
  z = Gemm <transB = 1> (x, v)
}"""


def test_tensorrt_gets_int4_constants_in_blocks_that_keep_its_rules() -> None:
    w, v, b = random(128, 24, seed=1), random(16, 128, seed=2), random(24, seed=3)
    floating = model_of(FOUR, w=w, v=v, b=b)
    model = quantize_graph(floating, "int4-weights", [], lowering_of("tensorrt", "cuda"))
    assert violations(model) == []
    assert quantized_ops(model).bytes_by_dtype["int4"] == (w.size + v.size) // 2
    found = constants(model)
    restored = {
        name: (found[f"{name}_levels"].astype(float) * found[f"{name}_scales"].repeat(64, axis=axis))
        for name, axis in (("w", 0), ("v", 1))
    }
    assert min(sqnr_db(w, restored["w"]), sqnr_db(v, restored["v"])) > 18
    x = random(3, 128, seed=5)
    np.testing.assert_allclose(run(model, x=x), x @ restored["w"] + b, rtol=1e-4, atol=1e-4)
    layers = {layer.output: layer for layer in quantized_layers(floating, model)}
    np.testing.assert_allclose(layers["z"].weight, restored["v"].T, rtol=1e-6)


def test_tensorrt_leaves_widths_that_no_block_fits_float() -> None:
    floating = model_of("one (float[n, 100] x) => (float[n, 48] y) { y = MatMul (x, w) }", w=random(100, 48))
    model = quantize_graph(floating, "int4-weights", [], lowering_of("tensorrt", "cuda"))
    assert operators(model) == {"MatMul": 1}


def test_an_old_operator_set_has_no_4_bit_constants() -> None:
    floating = model_of("one (float[n, 128] x) => (float[n, 48] y) { y = MatMul (x, w) }", w=random(128, 48))
    floating.opset_import[0].version = 17
    with pytest.raises(VlmEdgeError, match="need operator set 21; this graph is of 17"):
        compress_blocks(floating, block_size=64)
