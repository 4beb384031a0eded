"""Every form of an integer layer computes from the same int8 weights: held to numpy and to the float graph."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from proto_passes import changed, in_float, integer_layers, quantize_graph, with_forms
from small_mobilevit import INTEGER_CONVOLUTIONS, pictures, small_mobilevit

from vlm_edge.backends.onnxruntime.lowering import OnnxRuntimeLowering
from vlm_edge.graphs.passes.integer_forms import Form
from vlm_edge.quantizers.affine import quantize_weight

Array = NDArray[Any]
FORM = OnnxRuntimeLowering(weight_bits=7)
"""onnxruntime's; with 7 bits no CPU saturates."""


def model_of(text: str, **constants: Array) -> onnx.ModelProto:
    header = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
    model: onnx.ModelProto = parser.parse_model(f"{header}\n{text}")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def weight(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X = weight(2, 5, 48, seed=9)


def run(model: onnx.ModelProto, *, optimized: bool = False, **feed: Array) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed or {"x": X})[0])


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def cosine(wanted: Array, found: Array) -> float:
    return float((wanted * found).sum() / (np.linalg.norm(wanted) * np.linalg.norm(found)))


def linear(*, bias: bool, dynamic: bool = False, name: str = "fc") -> onnx.ModelProto:
    levels, scales = quantize_weight(weight(48, 32), 1, bits=7)
    last = ", b" * bias
    body = (
        f'[{name}] y = com.microsoft.DynamicQuantizeMatMul (x, w, w_scales, ""{last})'
        if dynamic
        else f"""xq = QuantizeLinear (x, scale, zero)
          [{name}] y = com.microsoft.MatMulIntegerToFloat (xq, w, scale, w_scales, zero, ""{last})"""
    )
    return model_of(
        f"linear (float[2, 5, 48] x) => (float[2, 5, 32] y) {{ {body} }}",
        w=levels,
        w_scales=scales,
        scale=np.array(0.03, np.float32),
        zero=np.array(120, np.uint8),
        **({"b": weight(32, seed=1)} if bias else {}),
    )


def restored() -> Array:
    levels, scales = quantize_weight(weight(48, 32), 1, bits=7)
    return levels * scales


class TestLinears:
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("dynamic", [False, True])
    @pytest.mark.parametrize("name", ["fc", "w", "b"])  # names of nodes that are tensors' as well
    def test_in_float_is_the_product_with_the_rounded_weight(self, bias: bool, dynamic: bool, name: str) -> None:
        model = linear(bias=bias, dynamic=dynamic, name=name)
        changed = with_forms(model, {name: "float"})
        assert counts(changed) == {"Cast": 1, "Mul": 1, "MatMul": 1} | ({"Add": 1} if bias else {})
        wanted = X @ restored() + (weight(32, seed=1) if bias else 0)
        np.testing.assert_allclose(run(changed), wanted, atol=1e-4)
        np.testing.assert_allclose(run(changed, optimized=True), wanted, atol=1e-4)

    @pytest.mark.parametrize("bias", [False, True])
    def test_dynamic_takes_the_range_of_the_run(self, bias: bool) -> None:
        changed = with_forms(linear(bias=bias), {"fc": "dynamic"})
        assert counts(changed) == {"DynamicQuantizeMatMul": 1}
        far = X * 40  # beyond the static range
        step = float(far.max() - far.min()) / 255
        bound = step * np.abs(restored()).sum(axis=0)
        wanted = far @ restored() + (weight(32, seed=1) if bias else 0)
        assert (np.abs(run(changed, x=far) - wanted) <= bound).all()
        assert not (np.abs(run(linear(bias=bias), x=far) - wanted) <= bound).all()

    @settings(max_examples=12)
    @given(st.permutations(["static", "dynamic", "float"]), st.booleans())
    def test_layers_of_one_quantizer_change_one_by_one(self, forms: list[Form], tied: bool) -> None:
        """Three layers read the same levels, two of them, or all, the same weight."""
        levels, scales = quantize_weight(weight(48, 32), 1, bits=7)
        others = quantize_weight(weight(48, 32, seed=1), 1, bits=7)
        third = "w, scale, w_scales" if tied else "u, scale, u_scales"
        constants = {"u": others[0], "u_scales": others[1]} if not tied else {}
        model = model_of(
            f"""three (float[2, 5, 48] x) => (float[2, 5, 32] y) {{
              xq = QuantizeLinear (x, scale, zero)
              [a] p = com.microsoft.MatMulIntegerToFloat (xq, w, scale, w_scales, zero)
              [b] q = com.microsoft.MatMulIntegerToFloat (xq, w, scale, w_scales, zero)
              [c] r = com.microsoft.MatMulIntegerToFloat (xq, {third}, zero)
              y = Sum (p, q, r)
            }}""",
            w=levels,
            w_scales=scales,
            scale=np.array(0.03, np.float32),
            zero=np.array(120, np.uint8),
            **constants,
        )
        assert [layer.node for layer in integer_layers(model)] == ["a", "b", "c"]
        changed = with_forms(model, dict(zip("abc", forms, strict=True)))
        kinds = counts(changed)
        assert (kinds["MatMulIntegerToFloat"], kinds["DynamicQuantizeMatMul"], kinds["MatMul"]) == (1, 1, 1)
        wanted = X @ (2 * restored() + (restored() if tied else others[0] * others[1]))
        assert np.abs(run(changed) - wanted).max() < 0.03 * np.abs(wanted).max()

    def test_data_that_is_no_quantizer_s_has_no_other_form(self) -> None:
        model = linear(bias=False)
        model.graph.node[0].CopyFrom(onnx.helper.make_node("Cast", ["x"], ["xq"], to=onnx.TensorProto.UINT8))
        assert integer_layers(model) == []

    def test_the_model_that_is_given_stays_as_it_is(self) -> None:
        model = linear(bias=True)
        before = model.SerializeToString(deterministic=True)
        with_forms(model, {"fc": "float"})
        in_float(model)
        assert model.SerializeToString(deterministic=True) == before
        assert with_forms(model, {"fc": "static"}) == changed(model)


@cache
def _mobilevit() -> bytes:
    return bytes(quantize_graph(small_mobilevit(), "int8", pictures(8), FORM).SerializeToString())


def mobilevit() -> onnx.ModelProto:
    return onnx.ModelProto.FromString(_mobilevit())


IMAGES = pictures(1, batch=4, seed=1)[0]


def restored_mobilevit() -> onnx.ModelProto:
    """The float graph with the values that the int8 weights stand for, by numpy."""
    model = small_mobilevit()
    by_node = {node.name: node for node in model.graph.node}
    axes = dict.fromkeys(("stem", *INTEGER_CONVOLUTIONS, "classifier"), 0)
    axes |= dict.fromkeys(("query", "key", "value", "out", "up", "down"), 1)
    names = {by_node[name].input[1]: (axis, 8 if name == "stem" else 7) for name, axis in axes.items()}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            axis, bits = names[tensor.name]
            value = numpy_helper.to_array(tensor)
            levels, scales = quantize_weight(value, axis, bits=bits)
            shape = [-1 if index == axis else 1 for index in range(value.ndim)]
            tensor.CopyFrom(numpy_helper.from_array((levels * scales.reshape(shape)).astype(np.float32), tensor.name))
    return model


class TestWholeGraph:
    def test_every_layer_is_found_with_its_weight_s_shape(self) -> None:
        layers = integer_layers(mobilevit())
        assert [layer.node for layer in layers if layer.op_type == "QLinearConv"] == list(INTEGER_CONVOLUTIONS)
        assert {layer.forms for layer in layers} == {("static", "float"), ("static", "dynamic", "float")}
        shapes = {layer.node: layer.weight for layer in layers}
        assert (shapes["fuse"], shapes["down"], shapes["classifier"]) == ((64, 128, 3, 3), (128, 64), (64, 10))

    def test_in_float_is_the_float_graph_with_rounded_weights(self) -> None:
        """But for the biases, which calibration corrects for the rounding of the weights: those are the graph's."""
        floating = in_float(mobilevit())
        left = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
        assert not left & set(counts(floating))
        wanted, found = run(restored_mobilevit(), **IMAGES), run(floating, **IMAGES)
        np.testing.assert_allclose(found, wanted, atol=0.05)
        np.testing.assert_allclose(run(floating, optimized=True, **IMAGES), found, atol=1e-4)

    @pytest.mark.parametrize("name", INTEGER_CONVOLUTIONS)
    def test_one_convolution_in_float_among_integers(self, name: str) -> None:
        """``project`` writes levels that ``local`` reads; the others are quantized just before and restored after."""
        changed = with_forms(mobilevit(), {name: "float"})
        kinds = {node.name: node.op_type for node in changed.graph.node}
        assert kinds[name] == "Conv"
        assert counts(changed)["QLinearConv"] == len(INTEGER_CONVOLUTIONS) - 1
        assert cosine(run(mobilevit(), **IMAGES), run(changed, **IMAGES)) > 0.995

    @settings(max_examples=15)
    @given(st.data())
    def test_any_choice_of_forms_is_near_the_float_graph(self, data: st.DataObject) -> None:
        model = mobilevit()
        forms = {
            layer.node: data.draw(st.sampled_from(layer.forms), label=layer.node) for layer in integer_layers(model)
        }
        changed = with_forms(model, forms)
        kinds = counts(changed)
        chosen = Counter(forms.values())
        assert kinds["DynamicQuantizeMatMul"] == chosen["dynamic"]
        assert kinds["QLinearConv"] + kinds["MatMulIntegerToFloat"] == chosen["static"]
        wanted, found = run(restored_mobilevit(), **IMAGES), run(changed, optimized=True, **IMAGES)
        assert cosine(wanted, found) > 0.995

    def test_pairs_of_a_graph_that_is_not_lowered_are_gone_as_well(self) -> None:
        """As a graph for OpenVINO has them; a pair behind a pair stands for the first one's tensor."""
        levels, scales = quantize_weight(weight(48, 32), 1)
        model = model_of(
            """pairs (float[2, 5, 48] x) => (float[2, 5, 32] y) {
              xq = QuantizeLinear (x, scale, zero)
              xd = DequantizeLinear (xq, scale, zero)
              again = QuantizeLinear (xd, wide, zero)
              restored = DequantizeLinear (again, wide, zero)
              wd = DequantizeLinear <axis = 1> (w, w_scales)
              y = MatMul (restored, wd)
            }""",
            w=levels,
            w_scales=scales,
            scale=np.array(0.03, np.float32),
            wide=np.array(0.1, np.float32),
            zero=np.array(3, np.int8),
        )
        assert counts(in_float(model)) == {"DequantizeLinear": 1, "MatMul": 1}
        np.testing.assert_allclose(run(in_float(model)), X @ (levels * scales), atol=1e-4)
