"""The TensorRT form: pairs stand where NVIDIA recommends them, whatever the graph, and keep their numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser
from proto_passes import misplaced, symmetric_activations, tensorrt_form, violations
from random_graphs import LAYERS, quantizers, random_model, run


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    layers=st.lists(st.sampled_from([kind for kind in LAYERS if kind != "reshape"]), min_size=1, max_size=7),
    opset=st.sampled_from([13, 17, 20, 21, 23]),
    dtype=st.sampled_from([np.int8, np.uint8]),
)
def test_whatever_the_graph_pairs_stand_as_recommended(seed: int, layers: list[str], opset: int, dtype: Any) -> None:
    symmetric = symmetric_activations(random_model(seed, dtype, layers, opset))
    form = tensorrt_form(symmetric)
    onnx.checker.check_model(form, full_check=True)
    assert violations(form) == misplaced(form) == []
    assert tensorrt_form(form).SerializeToString() == form.SerializeToString()
    scales = {value[0].tobytes() for value in quantizers(symmetric).values()}
    assert {value[0].tobytes() for value in quantizers(form).values()} <= scales
    assert [output.shape for output in run(form)] == [output.shape for output in run(symmetric)]


def model_of(text: str, **constants: NDArray[Any]) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


CONSTANTS: dict[str, NDArray[Any]] = {
    "scale": np.array(0.02, np.float32),
    "zero": np.array(0, np.int8),
    "matrix": np.random.default_rng(0).integers(-127, 128, (4, 4)).astype(np.int8),
    "matrix_scale": np.linspace(0.01, 0.04, 4, dtype=np.float32),
}


def test_a_pair_above_a_transposition_moves_below_it_and_no_bit_changes() -> None:
    model = model_of(
        """moved (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) {
          q = QuantizeLinear (x, scale, zero)
          d = DequantizeLinear (q, scale, zero)
          turned = Transpose <perm = [0, 2, 1, 3]> (d)
          weight = DequantizeLinear <axis = -1> (matrix, matrix_scale)
          y = MatMul (turned, weight)
        }""",
        **CONSTANTS,
    )
    form = tensorrt_form(model)
    (quantizer,) = (node for node in form.graph.node if node.op_type == "QuantizeLinear")
    assert quantizer.input[0] == "turned"
    np.testing.assert_array_equal(run(form)[0], run(model)[0])
    (weight,) = (node for node in form.graph.node if node.output[0] == "weight")
    assert helper.get_node_attr_value(weight, "axis") == 1


def test_a_product_with_one_quantized_factor_is_float() -> None:
    model = model_of(
        """half (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) {
          q = QuantizeLinear (x, scale, zero)
          d = DequantizeLinear (q, scale, zero)
          e = Exp (d)
          y = MatMul (d, e)
        }""",
        **CONSTANTS,
    )
    form = tensorrt_form(model)
    assert counts(form) == {"Exp": 1, "MatMul": 1}


def test_an_attention_whose_weights_are_float_is_float() -> None:
    model = model_of(
        """attention (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) {
          q = QuantizeLinear (x, scale, zero)
          d = DequantizeLinear (q, scale, zero)
          weight = DequantizeLinear <axis = 1> (matrix, matrix_scale)
          queries = MatMul (d, weight)
          queries_q = QuantizeLinear (queries, scale, zero)
          queries_d = DequantizeLinear (queries_q, scale, zero)
          keys = Transpose <perm = [0, 1, 3, 2]> (d)
          scores = MatMul (queries_d, keys)
          masked = Add (scale, scores)
          weights = Softmax (masked)
          y = MatMul (weights, d)
        }""",
        **CONSTANTS,
    )
    assert "attention" in {each.rule for each in misplaced(model)}
    form = tensorrt_form(model)
    assert counts(form)["QuantizeLinear"] == 1
    assert misplaced(form) == []


def test_weights_that_no_integer_operator_reads_are_float_with_the_same_values() -> None:
    model = model_of(
        """table (int64[1, 4, 4, 1] x) => (float[1, 4, 4, 1, 4] y) {
          rows = DequantizeLinear <axis = 0> (matrix, matrix_scale)
          first = Gather (rows, x)
          weight = DequantizeLinear <axis = 1> (matrix, matrix_scale)
          y = MatMul (first, weight)
        }""",
        **CONSTANTS,
    )
    form = tensorrt_form(model)
    assert counts(form) == {"Gather": 1, "MatMul": 1}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in form.graph.initializer}
    levels, scales = CONSTANTS["matrix"].astype(np.float32), CONSTANTS["matrix_scale"]
    np.testing.assert_array_equal(constants["rows_float"], levels * scales[:, None])
    np.testing.assert_array_equal(constants["weight_float"], levels * scales)


RESIDUAL = """residual (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) {{
  q = QuantizeLinear (x, scale, zero)
  d = DequantizeLinear (q, scale, zero)
  weight = DequantizeLinear <axis = 1> (matrix, matrix_scale)
  product = MatMul (d, weight)
  product_q = QuantizeLinear (product, scale, zero)
  product_d = DequantizeLinear (product_q, scale, zero)
  sum = Add (product_d, d)
  {tail}
}}"""


@pytest.mark.parametrize(
    ("tail", "pairs", "skip"),
    [
        (
            """sum_q = QuantizeLinear (sum, scale, zero)
            sum_d = DequantizeLinear (sum_q, scale, zero)
            y = MatMul (sum_d, weight)""",
            2,
            "d",
        ),
        ("y = Softmax (sum)", 1, "x"),
    ],
)
def test_a_skip_branch_is_quantized_where_its_sum_is(tail: str, pairs: int, skip: str) -> None:
    form = tensorrt_form(model_of(RESIDUAL.format(tail=tail), **CONSTANTS))
    assert counts(form)["QuantizeLinear"] == pairs
    (addition,) = (node for node in form.graph.node if node.op_type == "Add")
    assert list(addition.input) == ["product", skip]
    assert misplaced(form) == []


def test_a_pair_at_the_end_is_taken_out_and_the_output_keeps_its_name() -> None:
    model = model_of(
        """end (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) {
          r = Relu (x)
          q = QuantizeLinear (r, scale, zero)
          y = DequantizeLinear (q, scale, zero)
        }""",
        **CONSTANTS,
    )
    form = tensorrt_form(model)
    assert counts(form) == {"Relu": 1, "Identity": 1}
    assert [value.name for value in form.graph.output] == ["y"]


def test_a_pair_with_a_scale_for_each_channel_is_taken_out() -> None:
    """NNCF writes them before depthwise convolutions; the compiler computes in floating point behind them."""
    model = model_of(
        """depthwise (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) {
          q = QuantizeLinear <axis = 1> (x, matrix_scale, zeros)
          d = DequantizeLinear <axis = 1> (q, matrix_scale, zeros)
          weight = DequantizeLinear <axis = 0> (kernel, matrix_scale)
          y = Conv <group = 4, kernel_shape = [1, 1]> (d, weight)
        }""",
        zeros=np.zeros(4, np.int8),
        kernel=CONSTANTS["matrix"][:, :1, None, None].copy(),
        matrix_scale=CONSTANTS["matrix_scale"],
    )
    assert {each.rule for each in misplaced(model)} >= {"granularity"}
    form = tensorrt_form(model)
    assert counts(form) == {"Conv": 1}
    assert misplaced(form) == []
