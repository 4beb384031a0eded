"""SiLU as one operator: equal to numpy's, in the places where it is one and in no other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser
from proto_passes import changed, fuse_silu
from small_mobilevit import pictures, small_mobilevit

X = np.linspace(-30, 30, 60, dtype=np.float32).reshape(3, 20)


def model_of(body: str) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[n, 20] x) => (float[n, 20] y) {{ {body} }}'
    model = parser.parse_model(text)
    for name, value in (("scale", np.array(0.25, np.float32)), ("zero", np.array(128, np.uint8))):
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def run(model: onnx.ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed or {"x": X}))


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("order", ["x, s", "s, x"])
def test_silu_is_one_operator_and_numpy_s(order: str) -> None:
    fused = fuse_silu(model_of(f"s = Sigmoid (x)\n y = Mul ({order})"))
    assert counts(fused) == {"QuickGelu": 1}
    np.testing.assert_allclose(run(fused)[0], X / (1 + np.exp(-X.astype(np.float64))), atol=1e-5)


def test_behind_a_pair_it_is_fused_as_well() -> None:
    body = """xq = QuantizeLinear (x, scale, zero)
      xd = DequantizeLinear (xq, scale, zero)
      s = Sigmoid (xd)
      y = Mul (xd, s)"""
    model = model_of(body)
    fused = fuse_silu(model)
    assert counts(fused) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "QuickGelu": 1}
    np.testing.assert_allclose(run(fused)[0], run(model)[0], atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "a = Neg (x)\n s = Sigmoid (x)\n y = Mul (a, s)",  # another factor
        "s = Sigmoid (x)\n y = Mul (s, s)",  # the sigmoid's square
        "s = Sigmoid (x)\n m = Mul (x, s)\n y = Add (m, s)",  # the sigmoid is read once more
        "s = Sigmoid (x)\n y = Add (x, s)",
    ],
)
def test_what_only_looks_like_it_is_left(body: str) -> None:
    model = model_of(body)
    assert fuse_silu(model) == changed(model)


def test_a_sigmoid_that_the_graph_gives_out_is_kept() -> None:
    model = model_of("s = Sigmoid (x)\n y = Mul (x, s)")
    model.graph.output.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, ["n", 20]))
    assert fuse_silu(model) == changed(model)


def test_two_in_a_row() -> None:
    model = model_of("s = Sigmoid (x)\n m = Mul (x, s)\n t = Sigmoid (m)\n y = Mul (t, m)")
    fused = fuse_silu(model)
    assert counts(fused) == {"QuickGelu": 2}
    np.testing.assert_allclose(run(fused)[0], run(model)[0], atol=1e-5)


def test_a_whole_mobilevit_answers_the_same() -> None:
    model, feed = small_mobilevit(), pictures(1, batch=2)[0]
    fused = fuse_silu(model)
    assert counts(fused)["QuickGelu"] == 5
    assert "Sigmoid" not in counts(fused)
    np.testing.assert_allclose(run(fused, **feed)[0], run(model, **feed)[0], atol=1e-5)
