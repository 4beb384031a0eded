"""Places of NNCF's pairs are found once for graphs that differ in constants alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from vlm_edge.backends.tensorrt import lowering
from vlm_edge.backends.tensorrt.lowering import TensorRtLowering
from vlm_edge.graphs.files import GraphSession
from vlm_edge.graphs.passes.place_pairs import SetRanges, quantized_tensors
from vlm_edge.graphs.passes.smooth import smooth, smoothable

WIDTH, HIDDEN = 8, 16
GRAPH = f"""<ir_version: 10, opset_import: ["" : 20]>
block (float[rows, tokens, {WIDTH}] x) => (float[rows, tokens, {WIDTH}] y) {{
  [norm] normed = LayerNormalization (x, gamma, beta)
  [up] product = MatMul (normed, up_weight)
  [up_bias] wide = Add (product, up_bias)
  [relu] active = Relu (wide)
  [down] narrow = MatMul (active, down_weight)
  [skip] y = Add (narrow, x)
}}"""
SHAPES = {"gamma": (WIDTH,), "beta": (WIDTH,), "up_weight": (WIDTH, HIDDEN), "up_bias": (HIDDEN,)}


def network() -> ir.Model:
    generator, model = np.random.default_rng(0), parser.parse_model(GRAPH)
    for name, shape in (SHAPES | {"down_weight": (HIDDEN, WIDTH)}).items():
        model.graph.initializer.append(numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name))
    return ir.from_proto(model)


def outputs(placed: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    names = [name for group in quantized_tensors(placed) for name in group]
    SetRanges(dict.fromkeys(names, (-4.0, 4.0)), symmetric=True)(placed)
    return GraphSession(placed).run(["y"], feed)["y"]


def test_another_attempt_has_the_pairs_that_nncf_would_place_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = {"x": np.random.default_rng(1).normal(size=(1, 5, WIDTH)).astype(np.float32)}
    floating, smoothed = network(), network()
    (place,) = smoothable(smoothed)
    smooth(smoothed, {place.tensor: np.geomspace(0.1, 10, WIDTH, dtype=np.float32)})
    expected = outputs(TensorRtLowering.on("cuda").place(smoothed.clone(), [feed], frozenset()), feed)
    engine = TensorRtLowering.on("cuda")
    first = engine.place(floating.clone(), [feed], frozenset())
    with monkeypatch.context() as patch:
        patch.setattr(lowering, "place_pairs", None)  # would raise
        found = outputs(engine.place(smoothed.clone(), [feed], frozenset()), feed)
        again = outputs(engine.place(floating.clone(), [feed], frozenset()), feed)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(again, outputs(first, feed))
    assert np.abs(found - again).max() > 1e-3
    partly = engine.place(floating.clone(), [feed], frozenset({"up"}))
    assert "normed" not in [name for group in quantized_tensors(partly) for name in group]
