"""Fused queries, keys and values taken apart: no bit changes, and NVIDIA's compiler computes them in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser
from proto_passes import changed
from rtx import answer

from vlm_edge.backends.tensorrt_rtx.plan import in_float
from vlm_edge.graphs.passes.split_fused import SplitFused

HEADS, DIM, TOKENS = 4, 8, 6
WIDTH = HEADS * DIM
FUSED = f"""<ir_version: 10, opset_import: ["" : 20]>
attention (float[1, {TOKENS}, {WIDTH}] x) => (float[1, {HEADS}, {TOKENS}, {DIM}] y) {{
  x_q = QuantizeLinear (x, scale, zero)
  x_d = DequantizeLinear (x_q, scale, zero)
  weight = DequantizeLinear <axis = 1> (levels, scales)
  fused = MatMul (x_d, weight)
  biased = Add (fused, bias)
  parted = Reshape (biased, shape)
  turned = Transpose <perm = [2, 0, 3, 1, 4]> (parted)
  queries = Gather <axis = 0> (turned, first)
  keys = Gather <axis = 0> (turned, second)
  values = Gather <axis = 0> (turned, third)
  across = Transpose <perm = [0, 1, 3, 2]> (keys)
  scores = MatMul (queries, across)
  weights = Softmax (scores)
  y = MatMul (weights, values)
}}"""


def fused(scales: Any) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    values = {
        "scale": np.float32(0.02),
        "zero": np.int8(0),
        "levels": generator.integers(-127, 128, (WIDTH, 3 * WIDTH)).astype(np.int8),
        "scales": np.asarray(scales, np.float32),
        "bias": generator.normal(size=3 * WIDTH).astype(np.float32),
        "shape": np.array([-1, TOKENS, 3, HEADS, DIM]),
        "first": np.array(0),
        "second": np.array(1),
        "third": np.array(2),
    }
    model: onnx.ModelProto = parser.parse_model(FUSED)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).normal(size=(1, TOKENS, WIDTH)).astype(np.float32)})[0]


@pytest.mark.parametrize("scales", [np.linspace(0.01, 0.02, 3 * WIDTH), np.full(3 * WIDTH, 0.01)])
def test_the_parts_say_the_same_in_integers(scales: Any) -> None:
    model = fused(scales)
    split = changed(model, SplitFused())
    onnx.checker.check_model(split, full_check=True)
    np.testing.assert_array_equal(run(split), run(model))
    before, after = answer(model).plan, answer(split).plan
    assert before is not None
    assert after is not None
    assert "fused" in in_float(before)
    parts = {node.name for node in split.graph.node if node.op_type == "MatMul"} - {"scores", "y"}
    assert len(parts) == 3
    assert not parts & in_float(after)


def test_a_product_that_is_one_layer_stays() -> None:
    model = fused(np.full(3 * WIDTH, 0.01))
    node = next(node for node in model.graph.node if node.name == "queries")
    node.op_type, node.input[1] = "ReduceSum", "axis"
    del node.attribute[:]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
    assert [node.op_type for node in changed(model, SplitFused()).graph.node].count("Concat") == 0
