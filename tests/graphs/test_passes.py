"""The graph -> graph steps of quantization: what they must not change, what they must leave behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser
from proto_passes import (
    changed,
    compress_tables,
    compress_weights,
    dynamic_linears,
    fold_transposed_constants,
    graph_of,
    lower_linears,
    quantized_ops,
    retarget_activations,
    symmetric_activations,
    with_node_names,
    without_notes,
)
from this_host import WEIGHT_BITS

from vlm_edge.backends.lowering import lowering_of
from vlm_edge.graphs.passes.lower_linears import SMALLEST
from vlm_edge.quantizers.affine import quantize_weight

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(2, 5, 48)).astype(np.float32)


def model_of(text: str, **constants: NDArray[Any]) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(f"{HEADER}\n{text}")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, *, optimized: bool = True, **feed: NDArray[Any]) -> NDArray[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed or {"x": X})[0])


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def optimized_by_onnxruntime(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def weight(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def quantized_weight(shape: tuple[int, int], axis: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    levels, scales = quantize_weight(weight(*shape, seed=seed), axis, bits=WEIGHT_BITS)
    return {"w_int8": levels, "w_scale": scales, "w_zero": np.zeros(scales.shape, np.int8)}


def qdq_linear(
    dtype: type[np.int8] | type[np.uint8], zero_point: int, scale: float = 0.03, *, direct: bool = False
) -> onnx.ModelProto:
    """Q/DQ as a calibration tool writes it, above a Reshape; the pair's result is read by a Relu as well. With
    ``direct`` it stands right before the product."""
    above = """xq = QuantizeLinear (x, scale, zero)
          xd = DequantizeLinear (xq, scale, zero)
          rows = Reshape (xd, shape)
          z = Relu (xd)"""
    below = """flat = Reshape (x, shape)
          xq = QuantizeLinear (flat, scale, zero)
          rows = DequantizeLinear (xq, scale, zero)
          z = Relu (x)"""
    return model_of(
        f"""linear (float[2, 5, 48] x) => (float[10, 32] y, float[2, 5, 48] z) {{
          {below if direct else above}
          wd = DequantizeLinear <axis = 1> (w_int8, w_scale, w_zero)
          product = MatMul (rows, wd)
          y = Add (product, bias)
        }}""",
        scale=np.array(scale, np.float32),
        zero=np.array(zero_point, dtype),
        shape=np.array([10, 48], np.int64),
        bias=weight(32, seed=1),
        **quantized_weight((48, 32), 1),
    )


@settings(max_examples=25, deadline=None)
@given(zero_point=st.integers(-128, 127), scale=st.floats(2**-10, 1.0, width=32))
def test_retargeting_keeps_every_value(zero_point: int, scale: float) -> None:
    signed = qdq_linear(np.int8, zero_point, scale)
    unsigned = retarget_activations(signed, signed=False)
    back = retarget_activations(unsigned, signed=True)
    expected = run(signed, optimized=False)
    np.testing.assert_array_equal(run(unsigned, optimized=False), expected)
    np.testing.assert_array_equal(run(back, optimized=False), expected)
    (quantizer,) = (node for node in unsigned.graph.node if node.op_type == "QuantizeLinear")
    zero = next(tensor for tensor in unsigned.graph.initializer if tensor.name == quantizer.input[2])
    assert zero.data_type == TensorProto.UINT8
    assert numpy_helper.to_array(zero) == zero_point + 128


def test_retargeting_drops_an_output_dtype_of_newer_operator_sets() -> None:
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("QuantizeLinear", ["x", "scale"], ["xq"], output_dtype=TensorProto.INT8),
                helper.make_node("DequantizeLinear", ["xq", "scale"], ["y"]),
            ],
            "pair",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5, 48])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5, 48])],
            [numpy_helper.from_array(np.array(0.02, np.float32), "scale")],
        ),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=11,
    )
    unsigned = retarget_activations(model, signed=False)
    np.testing.assert_array_equal(run(unsigned, optimized=False), run(model, optimized=False))


def test_retargeting_refuses_what_computes_on_levels() -> None:
    model = model_of(
        """levels (float[2, 5, 48] x) => (int8[2, 5, 48] y) {
          xq = QuantizeLinear (x, scale, zero)
          y = Neg (xq)
        }""",
        scale=np.array(0.02, np.float32),
        zero=np.array(0, np.int8),
    )
    with pytest.raises(ValueError, match="Neg"):
        retarget_activations(model, signed=False)


@settings(max_examples=25, deadline=None)
@given(zero_point=st.integers(0, 255).filter(lambda value: value != 128))  # 128 is symmetric as it is
def test_symmetric_activations_hold_the_old_range(zero_point: int) -> None:
    scale = 0.03
    result = symmetric_activations(qdq_linear(np.uint8, zero_point, scale))
    (quantizer,) = (node for node in result.graph.node if node.op_type == "QuantizeLinear")
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    new_scale, new_zero = values[quantizer.input[1]], values[quantizer.input[2]]
    assert new_zero.dtype == np.int8
    assert new_zero == 0
    reach = max(zero_point, 255 - zero_point) * scale
    assert new_scale * 127 == pytest.approx(reach, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_lowered_linears_compute_what_the_pairs_say(dtype: type[np.int8] | type[np.uint8], tmp_path: Path) -> None:
    model = qdq_linear(dtype, 5, direct=True)
    lowered = lower_linears(model)
    np.testing.assert_allclose(run(lowered), run(model, optimized=False), atol=1e-4)
    assert counts(lowered) == {"Reshape": 1, "QuantizeLinear": 1, "MatMulIntegerToFloat": 1, "Relu": 1}
    if dtype is np.uint8:  # signed data belongs to ARM; on x86 onnxruntime runs it by a slow path
        fused = counts(optimized_by_onnxruntime(lowered, tmp_path))
        assert fused["MatMulIntegerToFloat"] == 1
        assert "DequantizeLinear" not in fused


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_is_lowered_as_well(transposed: int) -> None:
    shape, axis = ((32, 48), 0) if transposed else ((48, 32), 1)
    model = model_of(
        f"""gemm (float[10, 48] x) => (float[10, 32] y) {{
          xq = QuantizeLinear (x, scale, zero)
          xd = DequantizeLinear (xq, scale, zero)
          wd = DequantizeLinear <axis = {axis}> (w_int8, w_scale, w_zero)
          y = Gemm <transB = {transposed}> (xd, wd, bias)
        }}""",
        scale=np.array(0.03, np.float32),
        zero=np.array(131, np.uint8),
        bias=weight(32, seed=1),
        **quantized_weight(shape, axis),
    )
    rows = X.reshape(10, 48)
    lowered = lower_linears(model)
    assert counts(lowered) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    np.testing.assert_allclose(run(lowered, x=rows), run(model, optimized=False, x=rows), atol=1e-4)


def float_linear(bias_shape: tuple[int, ...] = (32,)) -> onnx.ModelProto:
    return model_of(
        """linear (float[2, 5, 48] x) => (float[2, 5, 32] y) {
          product = MatMul (x, w)
          y = Add (bias, product)
        }""",
        w=weight(48, 32),
        bias=weight(*bias_shape, seed=1),
    )


def test_dynamic_linears_are_exact_to_the_steps_of_data_and_weight() -> None:
    model = float_linear()
    dynamic = dynamic_linears(model, weight_bits=WEIGHT_BITS)
    assert counts(dynamic) == {"DynamicQuantizeMatMul": 1}
    levels, scales = quantize_weight(weight(48, 32), 1, bits=WEIGHT_BITS)
    low, high = min(float(X.min()), 0.0), max(float(X.max()), 0.0)
    step = (high - low) / 255
    rounded = np.clip(np.rint(X / step) + round(-low / step), 0, 255) - round(-low / step)
    expected = (rounded * step) @ (levels * scales) + weight(32, seed=1)
    np.testing.assert_allclose(run(dynamic), expected, atol=1e-3)


def test_a_bias_that_is_not_one_value_a_column_stays_an_add() -> None:
    dynamic = dynamic_linears(float_linear((5, 1)))
    assert counts(dynamic) == {"DynamicQuantizeMatMul": 1, "Add": 1}


def test_layers_that_share_a_weight_keep_their_own_bias() -> None:
    model = model_of(
        """shared (float[2, 5, 48] x) => (float[2, 5, 48] y) {
          a = MatMul (x, w)
          b = Add (a, first)
          c = MatMul (b, w)
          y = Add (c, second)
        }""",
        w=weight(48, 48) / 10,
        first=weight(48, seed=1),
        second=weight(48, seed=2),
    )
    dynamic = dynamic_linears(model, weight_bits=WEIGHT_BITS)
    assert counts(dynamic) == {"DynamicQuantizeMatMul": 2}
    assert sum(len(tensor.dims) == 2 for tensor in dynamic.graph.initializer) == 1
    np.testing.assert_allclose(run(dynamic), run(model), atol=0.1)


def convolution() -> onnx.ModelProto:
    return model_of(
        """conv (float[1, 16, 9, 9] x) => (float[1, 32, 7, 7] y) {
          y = Conv (x, w, bias)
        }""",
        w=weight(32, 16, 3, 3),
        bias=weight(32, seed=1),
    )


@pytest.mark.parametrize("decompression", ["cast", "dequantize"])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_compressed_weights_are_a_quarter_and_within_half_a_step(decompression: Any, kind: str) -> None:
    model = float_linear() if kind == "linear" else convolution()
    feed = X if kind == "linear" else GENERATOR.normal(size=(1, 16, 9, 9)).astype(np.float32)
    compressed = compress_weights(model, decompression=decompression)
    sizes = quantized_ops(compressed).bytes_by_dtype
    elements = 48 * 32 if kind == "linear" else 32 * 16 * 9
    assert sizes["int8"] == elements
    assert sizes["float32"] == 2 * 32 * 4
    original = numpy_helper.to_array(model.graph.initializer[0])
    levels, scales = quantize_weight(original, 1 if kind == "linear" else 0)
    restored = levels * (scales if kind == "linear" else scales.reshape(-1, 1, 1, 1))
    reference = float_linear() if kind == "linear" else convolution()
    reference.graph.initializer[0].CopyFrom(numpy_helper.from_array(restored.astype(np.float32), "w"))
    np.testing.assert_allclose(run(compressed, optimized=False, x=feed), run(reference, x=feed), atol=1e-4)


def test_onnxruntime_decompresses_once_when_it_loads(tmp_path: Path) -> None:
    compressed = compress_weights(convolution(), decompression="cast")
    assert counts(compressed) == {"Cast": 1, "Mul": 1, "Conv": 1}
    loaded = counts(optimized_by_onnxruntime(compressed, tmp_path))
    assert loaded["Conv"] == 1
    assert not {"Cast", "Mul", "DequantizeLinear"} & set(loaded)


def embedding(rows: int, columns: int) -> onnx.ModelProto:
    return model_of(
        """embedding (int64[tokens] ids) => (float[tokens, columns] y) {
          y = Gather (table, ids)
        }""",
        table=weight(rows, columns),
    )


@pytest.mark.parametrize("decompression", [None, "cast", "dequantize"])
@pytest.mark.parametrize("columns", [24, 160])
def test_gathered_rows_are_the_table_s_within_half_a_step(decompression: Any, columns: int) -> None:
    model = embedding(64, columns)
    compressed = compress_tables(model, decompression=decompression)
    assert ("GatherBlockQuantized" in counts(compressed)) == (decompression is None)
    ids = np.array([3, 0, 63, 3], np.int64)
    table = weight(64, columns)
    half_steps = np.abs(table).max(axis=1, keepdims=True)[ids] / 127 / 2
    assert (np.abs(run(compressed, ids=ids) - table[ids]) <= half_steps * 1.01).all()


def test_small_constants_stay_as_they_are() -> None:
    small = embedding(4, SMALLEST // 4 - 1)
    assert compress_tables(small, decompression=None) == changed(small)
    tiny = model_of(
        "tiny (float[2, 5, 48] x) => (float[2, 5, 4] y) { y = MatMul (x, w) }",
        w=weight(48, 4),
    )
    assert compress_weights(tiny, decompression="cast") == changed(tiny)


def test_a_tied_weight_is_transposed_once_and_for_all() -> None:
    model = model_of(
        """tied (float[2, 5, 48] x, int64[3] ids) => (float[2, 5, 40] y, float[3, 48] rows) {
          turned = Transpose <perm = [1, 0]> (table)
          y = MatMul (x, turned)
          rows = Gather (table, ids)
        }""",
        table=weight(40, 48),
    )
    folded = fold_transposed_constants(model)
    assert counts(folded) == {"MatMul": 1, "Gather": 1}
    ids = np.array([1, 2, 3], np.int64)
    np.testing.assert_array_equal(run(folded, x=X, ids=ids), run(model, x=X, ids=ids))


def test_every_node_gets_a_name_of_its_own() -> None:
    model = float_linear()
    for node in model.graph.node:
        node.name = "same"
    names = [node.name for node in with_node_names(model).graph.node]
    assert names[0] == "same"
    assert len(set(names)) == 2


def test_notes_are_taken_off() -> None:
    model = float_linear()
    model.graph.node[0].metadata_props.add(key="stack_trace", value="/home/someone/model.py")
    model.graph.node[0].doc_string = "/home/someone"
    model.graph.initializer[0].doc_string = "/home/someone"
    assert b"/home/someone" not in without_notes(model).SerializeToString()
    np.testing.assert_array_equal(run(without_notes(model)), run(model))


def test_a_lowered_graph_leaves_the_one_it_was_made_of_alone() -> None:
    for model, scheme in (
        (qdq_linear(np.int8, 5), "int8"),
        (float_linear(), "int8-dynamic"),
        (float_linear(), "int8-weights"),
    ):
        graph = graph_of(model)
        before = ir.to_proto(graph).SerializeToString()
        for engine, isa in (("onnxruntime", "x86"), ("openvino", "x86"), ("tensorrt", "cuda")):
            if engine == "onnxruntime" or scheme != "int8-dynamic":
                lowering_of(engine, isa).lower(graph, scheme)
        assert ir.to_proto(graph).SerializeToString() == before


def test_the_report_counts_what_runs_how() -> None:
    report = quantized_ops(qdq_linear(np.uint8, 120))
    assert report.fake == {"MatMul": 1}
    assert report.floating == {}
    lowered = quantized_ops(lower_linears(qdq_linear(np.uint8, 120, direct=True)))
    assert lowered.integer == {"MatMulIntegerToFloat": 1}
    assert quantized_ops(float_linear()).floating == {"MatMul": 1}
    assert lowered.as_facts()["constant_bytes"]["int8"] == 48 * 32
