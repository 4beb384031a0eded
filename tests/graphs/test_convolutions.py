"""Integer convolutions compute what their Q/DQ pairs say: held to numpy's integers and to the pairs run as they are."""

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
    changed,
    lower_convolutions,
    place_convolutions,
    place_linears,
    retarget_activations,
    with_ranges,
)

from vlm_edge.backends.lowering import host_isa

BITS = (7,) if host_isa() == "x86" else (7, 8)
"""Weights that this CPU multiplies exactly."""
Array = NDArray[Any]


def model_of(text: str, **constants: Array) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model)
    return model


def weight(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X = weight(2, 16, 9, 8, seed=9)


def run(model: onnx.ModelProto, x: Array = X, names: list[str] | None = None) -> list[Array]:
    """Without any graph optimization; ``names`` may be inner tensors."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names or [] if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(names, {"x": x})]


def placed(
    model: onnx.ModelProto, x: Array = X, *, bits: int = 7, signed: bool = False, left_out: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """With pairs, whose ranges are those of the float model's own run."""
    graph = place_convolutions(model, weight_bits=bits, outputs=True, left_out=left_out)
    names = sorted({node.input[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"} - {"x"})
    seen = {"x": x, **(dict(zip(names, run(model, x, names), strict=True)) if names else {})}
    ranges = {name: (min(0.0, float(value.min())), max(0.0, float(value.max()))) for name, value in seen.items()}
    return retarget_activations(with_ranges(graph, ranges, symmetric=False), signed=signed)


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def constants_of(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def convolve(x: Array, w: Array, strides: list[int], pads: list[int], dilations: list[int]) -> NDArray[np.float64]:
    """The definition, one offset of the kernel after another; sums of integers are exact."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, w.shape[2:], strict=True)]
    total: Any = 0.0
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            top, left = i * dilations[0], j * dilations[1]
            part = x[:, :, top : x.shape[2] - reach[0] + top, left : x.shape[3] - reach[1] + left]
            total = total + np.einsum("nchw,oc->nohw", part[:, :, :: strides[0], :: strides[1]], w[:, :, i, j])
    return np.asarray(total)


def integer_convolution(node: onnx.NodeProto, values: dict[str, Array], levels: Array) -> Array:
    """ONNX's QLinearConv in numpy: products of integers, and one rounding at the end."""
    _, x_scale, x_zero, w, w_scale, _, y_scale, y_zero, bias = (values.get(name, levels) for name in node.input)
    where: dict[str, list[int]] = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
    where |= {item.name: list(item.ints) for item in node.attribute if item.name in where}
    sums = convolve(levels.astype(np.int64) - int(x_zero), w, **where)
    sums += bias.reshape(-1, 1, 1)
    factor = float(x_scale) * w_scale.reshape(-1, 1, 1).astype(np.float64) / float(y_scale)
    limits = np.iinfo(y_zero.dtype)
    return np.clip(np.rint(sums * factor) + int(y_zero), limits.min, limits.max).astype(y_zero.dtype)


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    size = st.integers(1, 3)
    kernel = [draw(size), draw(size)]
    return {
        "kernel": kernel,
        "channels": draw(st.integers(-(-64 // int(np.prod(kernel))), 70)),
        "outputs": draw(st.integers(1, 9)),
        "strides": [draw(size), draw(size)],
        "pads": draw(st.lists(st.integers(0, 2), min_size=4, max_size=4)),
        "dilations": [draw(st.integers(1, 2)), draw(st.integers(1, 2))],
        "bias": draw(st.booleans()),
        "bits": draw(st.sampled_from(BITS)),
        "signed": draw(st.booleans()),
        "shift": draw(st.sampled_from([-3.0, 0.0, 3.0])),
    }


@settings(max_examples=40)
@given(shapes())
def test_a_convolution_is_the_integers_that_numpy_computes(shape: dict[str, Any]) -> None:
    w = weight(shape["outputs"], shape["channels"], *shape["kernel"])
    x = weight(2, shape["channels"], 7, 6, seed=1) + np.float32(shape["shift"])
    words = ", ".join(f"{name} = {shape[name]}" for name in ("strides", "pads", "dilations"))
    bias = {"b": weight(shape["outputs"], seed=2)} if shape["bias"] else {}
    model = model_of(
        f"""conv (float[n, c, h, v] x) => (float[n, o, p, q] y) {{
          [conv] z = Conv <{words}> (x, w{", b" * shape["bias"]})
          y = Relu (z)
        }}""",
        w=w,
        **bias,
    )
    pairs = placed(model, x, bits=shape["bits"], signed=shape["signed"])
    lowered = lower_convolutions(pairs)
    assert counts(lowered) == {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1, "Relu": 1}
    values = constants_of(lowered)
    (node,) = (node for node in lowered.graph.node if node.op_type == "QLinearConv")
    assert np.abs(values[node.input[3]]).max() <= 2 ** (shape["bits"] - 1) - 1
    levels, got = run(lowered, x, [node.input[0], node.output[0]])
    wanted = integer_convolution(node, values, levels)
    apart = np.abs(got.astype(int) - wanted)
    assert apart.max() <= 1  # onnxruntime's factor is float32: a sum next to half a step may go either way
    assert (apart > 0).mean() < 0.01
    y_scale = float(values[node.input[6]])
    assert np.abs(run(lowered, x)[0] - run(pairs, x)[0]).max() <= 1.01 * y_scale


def test_data_that_two_convolutions_read_is_quantized_once() -> None:
    model = model_of(
        """two (float[n, 16, h, v] x) => (float[n, 8, h, v] y, float[n, 16, h, v] z) {
          [a] p = Conv <pads = [1, 1, 1, 1]> (x, w)
          [b] q = Conv <pads = [1, 1, 1, 1]> (x, u)
          y = Add (p, q)
          z = Relu (x)
        }""",
        w=weight(8, 16, 3, 3),
        u=weight(8, 16, 3, 3, seed=1),
    )
    pairs = placed(model)
    lowered = lower_convolutions(pairs)
    assert counts(pairs)["QuantizeLinear"] == 3
    assert counts(lowered) == {"QuantizeLinear": 1, "QLinearConv": 2, "DequantizeLinear": 2, "Add": 1, "Relu": 1}
    np.testing.assert_array_equal(run(lowered)[1], np.maximum(X, 0))  # others read what it was
    np.testing.assert_allclose(run(lowered)[0], run(model)[0], atol=0.05 * np.abs(run(model)[0]).max())


@pytest.mark.parametrize("skip", [False, True])
def test_a_convolution_of_a_convolution_reads_its_levels(skip: bool) -> None:
    """And where something else reads the first one's output, it reads what the levels stand for."""
    model = model_of(
        f"""chain (float[n, 16, h, v] x) => (float[n, 16, h, v] y) {{
          [a] p = Conv <pads = [1, 1, 1, 1]> (x, w, b)
          [b] q = Conv <pads = [1, 1, 1, 1]> (p, u, b)
          y = Add (q, {"p" if skip else "x"})
        }}""",
        w=weight(16, 16, 3, 3) / 12,
        u=weight(16, 16, 3, 3, seed=1) / 12,
        b=weight(16, seed=2),
    )
    pairs = placed(model)
    lowered = lower_convolutions(pairs)
    assert counts(lowered) == {
        "QuantizeLinear": 1,
        "QLinearConv": 2,
        "DequantizeLinear": 1 + skip,
        "Add": 1,
    }
    first, second = (node for node in lowered.graph.node if node.op_type == "QLinearConv")
    assert second.input[0] == first.output[0]
    values = constants_of(lowered)
    levels, got = run(lowered, names=[first.output[0], second.output[0]])
    assert np.abs(got.astype(int) - integer_convolution(second, values, levels)).max() <= 1
    (wanted,), (found,) = run(model), run(lowered)
    assert (wanted * found).sum() / np.sqrt(np.square(wanted).sum() * np.square(found).sum()) > 0.9995


def test_a_weight_that_two_convolutions_read_is_stored_once() -> None:
    model = model_of(
        """tied (float[n, 16, h, v] x) => (float[n, 16, h, v] y) {
          [a] p = Conv <pads = [1, 1, 1, 1]> (x, w, b)
          r = Relu (p)
          [b] q = Conv <pads = [1, 1, 1, 1]> (r, w)
          y = Relu (q)
        }""",
        w=weight(16, 16, 3, 3) / 12,
        b=weight(16, seed=2),
    )
    lowered = lower_convolutions(placed(model))
    assert counts(lowered)["QLinearConv"] == 2
    assert sum(len(tensor.dims) == 4 for tensor in lowered.graph.initializer) == 1
    np.testing.assert_allclose(run(lowered)[0], run(model)[0], atol=0.05 * np.abs(run(model)[0]).max())


def test_a_weight_that_is_read_in_integers_and_in_float() -> None:
    """Of two convolutions with one int8 weight the second has no pairs: each computes in its own arithmetic."""
    model = model_of(
        """tied (float[n, 16, h, v] x) => (float[n, 16, h, v] y) {
          [a] p = Conv <pads = [1, 1, 1, 1]> (x, w)
          y = Relu (p)
        }""",
        w=weight(16, 16, 3, 3),
    )
    pairs = placed(model)
    second = onnx.NodeProto()
    second.CopyFrom(next(node for node in pairs.graph.node if node.op_type == "Conv"))
    second.name, second.input[0], second.output[0] = "b", "x", "plain"
    pairs.graph.node.append(second)
    pairs.graph.output.append(onnx.ValueInfoProto(name="plain"))
    lowered = lower_convolutions(pairs)
    assert counts(lowered) == {
        **{"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1, "Relu": 1},
        **{"Cast": 1, "Mul": 1, "Conv": 1},
    }
    wanted, found = run(pairs), run(lowered)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-4)
    np.testing.assert_allclose(found[0], wanted[0], atol=0.02 * np.abs(wanted[0]).max())


def test_a_bias_far_larger_than_its_channel_s_weights_is_kept() -> None:
    """A folded normalization that has switched a channel off leaves weights next to 0; the output is the bias."""
    w = weight(8, 16, 3, 3)
    w[3] *= 1e-12
    w[5] = 0
    model = model_of(
        """dead (float[n, 16, h, v] x) => (float[n, 8, h, v] y) {
          [a] p = Conv <pads = [1, 1, 1, 1]> (x, w, b)
          y = Relu (p)
        }""",
        w=w,
        b=np.full(8, 5.0, np.float32),
    )
    lowered = lower_convolutions(placed(model))
    assert counts(lowered)["QLinearConv"] == 1
    wanted, found = run(model)[0], run(lowered)[0]
    step = float(wanted.max()) / 100
    np.testing.assert_allclose(found[:, [3, 5]], 5.0, atol=step)
    np.testing.assert_allclose(found, wanted, atol=0.05 * wanted.max())


class TestWhatStaysFloat:
    @pytest.mark.parametrize(
        ("line", "shape"),
        [
            ("z = Conv (x, w)", (8, 16, 1, 1)),  # 16 products
            ("z = Conv <group = 16, pads = [1, 1, 1, 1]> (x, w)", (16, 1, 3, 3)),  # depthwise
            ("z = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w)", (8, 8, 3, 3)),  # grouped
            ("v = Abs (w)\n z = Conv (x, v)", (8, 16, 3, 3)),  # a computed weight
            ("c = Abs (b)\n z = Conv (x, w, c)", (8, 16, 3, 3)),  # a computed bias
            ("z = ConvTranspose (x, w)", (16, 8, 3, 3)),
        ],
    )
    def test_other_convolutions(self, line: str, shape: tuple[int, ...]) -> None:
        model = model_of(
            f"other (float[n, 16, h, v] x) => (float[n, o, p, q] y) {{ {line}\n y = Relu (z) }}",
            w=weight(*shape),
            **({"b": weight(8)} if "Abs (b)" in line else {}),
        )
        assert place_convolutions(model, weight_bits=8, outputs=True) == changed(model)
        assert lower_convolutions(model) == changed(model)

    def test_outputs_of_the_graph(self) -> None:
        model = model_of(
            """out (float[n, 16, h, v] x) => (float[n, 8, p, q] y, float[n, 8, p, q] z) {
              [a] y = Conv (x, w)
              z = Relu (y)
            }""",
            w=weight(8, 16, 3, 3),
        )
        assert place_convolutions(model, weight_bits=8, outputs=True) == changed(model)

    def test_names_that_are_left_out(self) -> None:
        model = model_of(
            """left (float[n, 16, h, v] x) => (float[n, 8, p, q] y) {
              [a] p = Conv (x, w)
              [b] q = Conv (x, w)
              r = Relu (p)
              s = Relu (q)
              y = Add (r, s)
            }""",
            w=weight(8, 16, 3, 3),
        )
        lowered = lower_convolutions(placed(model, left_out=frozenset({"a"})))
        assert {node.name: node.op_type for node in lowered.graph.node if "Conv" in node.op_type} == {
            "a": "Conv",
            "b": "QLinearConv",
        }
        np.testing.assert_allclose(run(lowered, names=["r"])[0], run(model, names=["r"])[0], atol=1e-5)
        both = placed(model, left_out=frozenset({"a", "b"}))
        assert both == changed(model)

    def test_what_a_linear_layer_quantizes_already(self) -> None:
        model = model_of(
            """shared (float[2, 16, 9, 8] x) => (float[2, 8, 7, 4] y, float[2, 16, 9, 5] z) {
              [a] p = Conv (x, w)
              [b] q = MatMul (p, m)
              y = Relu (q)
              [c] z = MatMul (x, n)
            }""",
            w=weight(8, 16, 3, 3),
            m=weight(6, 4),
            n=weight(8, 5),
        )
        linears = place_linears(model, weight_bits=8)
        assert counts(linears)["QuantizeLinear"] == 2
        assert place_convolutions(linears, weight_bits=8, outputs=True) == changed(linears)
