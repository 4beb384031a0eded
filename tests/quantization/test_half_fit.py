"""16-bit graphs: which nodes stay float32, found by running, and why a plain cast of everything fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from _outlier_channels import add_outliers
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from rtx import answer

from vlm_edge.backends.lowering import lowering_of
from vlm_edge.graphs.files import GraphSession
from vlm_edge.graphs.passes.half_precision import HALVES, HalfPrecision, as_float32
from vlm_edge.graphs.passes.prepare import NameNodes
from vlm_edge.graphs.shapes import element_types
from vlm_edge.quantization.half_fit import HalfFit
from vlm_edge.quantizers.affine import Agreement

WIDTH, HIDDEN = 64, 96
HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
BLOCK = f"""net (float[rows, tokens, {WIDTH}] x, int64[rows, tokens] seen) => (float[rows, tokens, {WIDTH}] logits) {{
  normed = LayerNormalization (x, gamma, beta)
  queries = MatMul (normed, up)
  keys = Transpose <perm = [0, 2, 1]> (queries)
  scores = MatMul (queries, keys)
  visible = Cast <to = 9> (seen)
  one = Constant <value_ints = [1]> ()
  row = Unsqueeze (visible, one)
  masked = Where (row, scores, lowest)
  weights = Softmax (masked)
  context = MatMul (weights, queries)
  active = Gelu (context)
  narrow = MatMul (active, down)
  states = Add (narrow, x)
  final = LayerNormalization (states, gamma, beta)
  logits = MatMul (final, head)
}}"""


def model_of(text: str, **constants: NDArray[np.float32]) -> ir.Model:
    model: onnx.ModelProto = parser.parse_model(f"{HEADER}\n{text}")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model, full_check=True)
    graph = ir.from_proto(model)
    NameNodes()(graph)
    return graph


def block() -> tuple[ir.Model, list[dict[str, Any]]]:
    """An attention with a mask, between two norms, and inputs of it."""
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> NDArray[np.float32]:
        return (generator.normal(size=shape) / 8).astype(np.float32)

    model = model_of(
        BLOCK,
        gamma=draw(WIDTH) + 1,
        beta=draw(WIDTH),
        up=draw(WIDTH, HIDDEN),
        down=draw(HIDDEN, WIDTH),
        head=draw(WIDTH, WIDTH),
        lowest=np.array([np.finfo(np.float32).min]),
    )
    feeds = [{"x": 8 * draw(2, tokens, WIDTH), "seen": np.ones((2, tokens), np.int64)} for tokens in (5, 7, 12)]
    feeds[2]["seen"][0, 3:] = 0
    return model, feeds


def run(model: ir.Model, feed: dict[str, Any]) -> NDArray[Any]:
    """The output, rounded wherever a 16-bit graph rounds."""
    model = model.clone()
    as_float32(model, rounded=True)
    outputs = [str(value.name) for value in model.graph.outputs]
    return GraphSession(model, level="disabled").run(outputs, feed)[outputs[0]]


def cosine(model: ir.Model, other: ir.Model, feeds: list[dict[str, Any]]) -> float:
    total = Agreement()
    for feed in feeds:
        total.add(run(model, feed), run(other, feed))
    return total.cosine


def half(model: ir.Model, kept: Any = (), dtype: str = "float16") -> ir.Model:
    changed = model.clone()
    HalfPrecision(HALVES[dtype], frozenset(kept))(changed)
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    return changed


def outputs_of(model: ir.Model, dtype: ir.DataType) -> set[str]:
    types = element_types(model)
    return {str(node.outputs[0].name) for node in model.graph if types[str(node.outputs[0].name)] == dtype}


def test_float32_is_kept_where_it_must_be() -> None:
    model, feeds = block()
    kept = HalfFit(model, ir.DataType.FLOAT16, feeds).kept()
    because = {str(node.outputs[0].name): kept.get(str(node.name)) for node in model.graph}
    assert because["masked"] == "range"  # -3.4e38 is no float16
    assert because["weights"] in ("range", "sum")
    assert because["logits"] == "output"
    changed = half(model, kept)
    assert {"masked", "weights", "logits"} <= outputs_of(changed, ir.DataType.FLOAT)
    assert {"normed", "queries", "keys", "scores", "context", "active", "narrow", "states", "final"} <= {
        *outputs_of(changed, ir.DataType.FLOAT16)
    }
    assert cosine(model, changed, feeds) > 0.99999
    for before, after in zip(model.graph.inputs, changed.graph.inputs, strict=True):
        assert (before.name, before.dtype) == (after.name, after.dtype)
    assert [(value.name, value.dtype) for value in changed.graph.outputs] == [("logits", ir.DataType.FLOAT)]


def test_outlier_channels_break_a_plain_cast_but_not_ours() -> None:
    model, feeds = block()
    assert add_outliers(model, channels=2, factor=1e5) > 0
    NameNodes()(model)
    assert not np.isfinite(run(half(model), feeds[0])).all()
    kept = HalfFit(model, ir.DataType.FLOAT16, feeds).kept()
    assert "range" in kept.values()
    assert cosine(model, half(model, kept), feeds) > 0.9999
    assert len(kept) < len(HalfFit(model, ir.DataType.FLOAT16, feeds).nodes)  # not all of it is float32


def test_rotary_angles_stay_float32() -> None:
    model = model_of(
        """net (float[tokens, 8] x, int64[tokens] positions) => (float[tokens, 8] y) {
  ones = Constant <value_ints = [1]> ()
  place = Cast <to = 1> (positions)
  column = Unsqueeze (place, ones)
  angles = MatMul (column, frequencies)
  cosines = Cos (angles)
  y0 = Mul (x, cosines)
  y = MatMul (y0, w)
}""",
        frequencies=(1 / 10000 ** np.linspace(0, 1, 8, dtype=np.float32)).reshape(1, 8),
        w=np.eye(8, dtype=np.float32),
    )
    feed = {"x": np.ones((3, 8), np.float32), "positions": np.array([5, 801, 2047])}
    kept = HalfFit(model, ir.DataType.FLOAT16, [{**feed, "positions": np.arange(3)}]).kept()  # short samples
    because = {str(node.outputs[0].name): kept.get(str(node.name)) for node in model.graph}
    assert {because[name] for name in ("place", "column", "angles", "cosines")} == {"integers"}
    assert because["y0"] is None
    np.testing.assert_allclose(run(half(model, kept), feed), run(model, feed), atol=2e-3)
    assert np.abs(run(half(model), feed) - run(model, feed)).max() > 0.03


def test_a_node_that_magnifies_rounding_is_found_with_what_it_reads() -> None:
    """The variance of values far from 0, spelled out: they lose in float16 what tells them apart."""
    model = model_of(
        """net (float[rows, 16] x) => (float[rows, 16] y) {
  far = Add (x, offset)
  near = Sub (far, offset2)
  y0 = MatMul (near, w)
  y = Mul (y0, one)
}""",
        offset=np.full(16, 1000, np.float32),
        offset2=np.full(16, 1000, np.float32),
        w=np.eye(16, dtype=np.float32),
        one=np.ones(1, np.float32),
    )
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    fit = HalfFit(model, ir.DataType.FLOAT16, [{"x": x}])
    because = {str(node.outputs[0].name): fit.kept().get(str(node.name)) for node in model.graph}
    assert because == {"far": "rounding", "near": "rounding", "y0": None, "y": "output"}
    assert cosine(model, half(model), [{"x": x}]) < 0.99
    assert cosine(model, half(model, fit.kept()), [{"x": x}]) > 0.99999


@pytest.mark.parametrize("dtype", list(HALVES))
def test_back_to_float32_and_again(dtype: str) -> None:
    model, feeds = block()
    kept = HalfFit(model, HALVES[dtype], feeds).kept()
    first = half(model, kept, dtype)
    back = first.clone()
    again = as_float32(back)
    assert again is not None
    assert set(element_types(back).values()).isdisjoint(HALVES.values())
    assert [node.op_type for node in back.graph] == [node.op_type for node in model.graph]
    assert cosine(model, back, feeds) > 0.9999
    again(back)
    assert ir.to_proto(back).SerializeToString() == ir.to_proto(first).SerializeToString()


def test_the_float32_form_rounds_as_float16_does() -> None:
    """onnxruntime has no float16 kernels for additions, and runs two in a row in float32."""
    model = model_of(
        "net (float[n] x) => (float[n] y) { a = Add (x, far) b = Sub (a, far) y = Mul (b, two) }",
        far=np.full(1, 1000, np.float32),
        two=np.full(1, 2, np.float32),
    )
    x = np.linspace(0, 1, 9, dtype=np.float32)
    wanted = ((x.astype(np.float16) + np.float16(1000)) - np.float16(1000)) * np.float16(2)
    np.testing.assert_array_equal(run(half(model), {"x": x}), wanted.astype(np.float32))


def test_bfloat16_has_the_operators_of_the_operator_set() -> None:
    """Conv takes bfloat16 from operator set 22 on."""
    model = model_of(
        "net (float[n, 3, 8, 8] x) => (float[n, 4, 6, 6] y) { c = Conv (x, w) r = Relu (c) y = Mul (r, one) }",
        w=np.ones((4, 3, 3, 3), np.float32),
        one=np.ones(1, np.float32),
    )
    changed = half(model, dtype="bfloat16")
    assert "c" in outputs_of(changed, ir.DataType.FLOAT)
    assert "r" in outputs_of(changed, ir.DataType.BFLOAT16)
    assert "c" in outputs_of(half(model), ir.DataType.FLOAT16)


def test_large_weights_of_float32_nodes_are_stored_in_16_bits_where_nothing_is_lost() -> None:
    text = f"net (float[rows, {WIDTH}] x) => (float[rows, {WIDTH}] y) {{ y = MatMul (x, w) }}"
    weight = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    for values, stored in ((weight.astype(np.float16).astype(np.float32), "FLOAT16"), (weight, "FLOAT")):
        model = model_of(text, w=values)
        changed = half(model, [str(node.name) for node in model.graph])
        assert [value.dtype.name for value in changed.graph.initializers.values()] == [stored]  # type: ignore[union-attr]
        x = np.ones((2, WIDTH), np.float32)
        np.testing.assert_array_equal(run(changed, {"x": x}), run(model, {"x": x}))


@pytest.mark.parametrize("dtype", list(HALVES))
def test_weights_of_4_bits_sit_in_16_bit_graphs(dtype: str) -> None:
    weight = np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32)
    text = "net (float[4, 128] x) => (float[4, 128] y) { a = MatMul (x, w) b = Relu (a) y = Mul (b, one) }"
    model = model_of(text, w=weight, one=np.ones(1, np.float32))
    lowered = lowering_of("tensorrt", "cuda").lower(model, "int4-weights")
    changed = half(lowered, dtype=dtype)
    types = {value.const_value.dtype for value in changed.graph.initializers.values() if value.const_value is not None}
    assert types == {ir.DataType.INT4, HALVES[dtype]}
    assert answer(ir.to_proto(changed)).plan is not None
