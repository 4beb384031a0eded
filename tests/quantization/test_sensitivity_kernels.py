"""Layers in onnxruntime's dynamic and weight-only kernels: all of them rounded at once is what the kernels compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from proto_passes import SwitchedGraph, lowered, with_node_names
from this_host import FORM

from vlm_edge.quantization.sensitivity import rank_layers
from vlm_edge.quantizers.affine import Agreement

WIDTH, HIDDEN = 64, 96
GRAPH = f"""<ir_version: 10, opset_import: ["" : 20]>
block (float[rows, {WIDTH}] x) => (float[rows, {WIDTH}] y) {{
  product = MatMul (x, up)
  wide = Add (product, up_bias)
  active = Relu (wide)
  middle = Gemm <transB = 1> (active, down, down_bias)
  y = MatMul (middle, last)
}}"""


def model() -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    values = {
        "up": generator.normal(size=(WIDTH, HIDDEN)) / 8,
        "up_bias": generator.normal(size=HIDDEN),
        "down": generator.normal(size=(WIDTH, HIDDEN)) / 9,
        "down_bias": generator.normal(size=WIDTH),
        "last": generator.normal(size=(WIDTH, WIDTH)) / 8,
    }
    parsed: onnx.ModelProto = parser.parse_model(GRAPH)
    parsed.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()
    )
    return with_node_names(parsed)


def run(graph: onnx.ModelProto, feed: dict[str, Any]) -> NDArray[np.float32]:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize(("scheme", "agreeing_db"), [("int8-dynamic", 55.0), ("int4-weights", 35.0)])
def test_all_layers_switched_on_are_the_kernels(scheme: str, agreeing_db: float) -> None:
    """MatMulNBits rounds its data, too, which no switch does: 35 dB instead of the same levels."""
    floating = model()
    quantized = lowered(floating, scheme, FORM)
    switched = SwitchedGraph(floating, quantized, 1)
    nodes = {layer.node for layer in switched.layers}
    assert nodes == {node.name for node in floating.graph.node if node.op_type in ("MatMul", "Gemm")}
    feed = {"x": np.random.default_rng(1).normal(size=(7, WIDTH)).astype(np.float32)}
    np.testing.assert_allclose(switched.run(feed, ())["y"], run(floating, feed), atol=1e-5)
    found = Agreement()
    found.add(run(quantized, feed), switched.run(feed, nodes)["y"])
    assert found.sqnr_db > agreeing_db
    noise = Agreement()
    noise.add(run(floating, feed), run(quantized, feed))
    assert noise.sqnr_db < agreeing_db - 5


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int4-weights", "int8-weights"])
def test_a_layer_alone_is_the_graph_with_all_others_left_out(scheme: str) -> None:
    floating, form = model(), FORM
    feed = {"x": np.random.default_rng(2).normal(size=(9, WIDTH)).astype(np.float32)}
    ranked = rank_layers(SwitchedGraph(floating, lowered(floating, scheme, form), 1), [feed])
    nodes = {each.layer.node for each in ranked}
    assert len(nodes) == 3
    for each in ranked:
        alone = lowered(floating, scheme, form, frozenset(nodes - {each.layer.node}))
        found = Agreement()
        found.add(run(floating, feed), run(alone, feed))
        assert each.sqnr_db == pytest.approx(found.sqnr_db, abs=1.0)
