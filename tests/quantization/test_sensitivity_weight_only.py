"""A layer of which the weight alone is rounded is ranked like the others."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser
from proto_passes import SwitchedGraph

from vlm_edge.quantization.sensitivity import rank_layers

FLOAT = """<ir_version: 10, opset_import: ["" : 20]>
net (float[3, 8] x) => (float[3, 8] y) {
  y = MatMul (x, weight)
}"""
QUANTIZED = """<ir_version: 10, opset_import: ["" : 20]>
net (float[3, 8] x) => (float[3, 8] y) {
  restored = DequantizeLinear <axis = 1> (levels, scales)
  y = MatMul (x, restored)
}"""


def model(text: str, **values: np.ndarray) -> onnx.ModelProto:
    parsed = parser.parse_model(text)
    parsed.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    for node in parsed.graph.node:
        node.name = node.output[0]
    return parsed


def test_a_layer_with_a_rounded_weight_and_float_data_has_its_error() -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(8, 8)).astype(np.float32)
    levels = generator.integers(-127, 128, (8, 8)).astype(np.int8)
    scales = np.full(8, 0.01, np.float32)
    x = generator.normal(size=(3, 8)).astype(np.float32)
    graph = SwitchedGraph(model(FLOAT, weight=weight), model(QUANTIZED, levels=levels, scales=scales), 1)
    (ranked,) = rank_layers(graph, [{"x": x}])
    wanted, got = x @ weight, x @ (levels * scales)
    expected = 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum())
    assert abs(ranked.sqnr_db - expected) < 0.01
