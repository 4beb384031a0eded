"""Every cause on a graph that has it, as onnxruntime itself rewrites it, and not on the same graph with the remedy."""

from __future__ import annotations

import platform

import numpy as np
import onnx
import planted_int8 as planted
import pytest
from onnx import TensorProto, helper, numpy_helper
from planted_int8 import EVERYTHING, MATMUL, ROWS, WIDTH, float_chain, model_of, view_of, with_pairs

from vlm_edge.explain.causes import CAUSES, explain_graph
from vlm_edge.explain.view import Graph, Hit, Int8Speed, Int8View

X86 = platform.machine().lower() in ("x86_64", "amd64")
SHAPE = ("batch", ROWS, WIDTH)


def named(view, shares=None):
    return {finding.cause.name: finding for finding in explain_graph(view, shares)}


def operators(finding):
    return {node.op_type for node in finding.nodes}


PLANTED = {
    "s8 data, slow kernel": (
        planted.signed_slow_kernel,
        lambda: planted.lower_linears(planted.to_unsigned(with_pairs(float_chain(), MATMUL, signed=True))),
        "s8-activations",
        "MatMulIntegerToFloat",
        3,
    ),
    "s8 data, not fused": (
        planted.signed_unfused,
        lambda: planted.to_unsigned(planted.signed_unfused()),
        "s8-activations",
        "MatMul",
        2,
    ),
    "weights not folded": (
        planted.weight_only,
        planted.weight_only_folded,
        "weight-dequantized",
        "DequantizeLinear",
        2,
    ),
    "Gemm in the way": (planted.gemm_blocked, planted.gemm_lowered, "gemm-fusion", "Gemm", 3),
    **{
        f"around {between}": (
            lambda between=between: planted.around_float(between),
            lambda between=between: planted.around_products(between),
            "qdq-around-float-op",
            operator,
            count,
        )
        for between, operator, count in (
            ("gelu", "DequantizeLinear", 3),
            ("norm", "DequantizeLinear", 3),
            ("softmax", "QLinearSoftmax", 2),
            ("silu", "QLinearSigmoid", 3),
        )
    },
}


@pytest.mark.skipif(not X86, reason="onnxruntime fuses s8 data on ARM")
@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_comes_first_and_its_remedy_is_clean(case, tmp_path):
    slow, remedied, cause, operator, count = PLANTED[case]
    first = explain_graph(view_of(slow(), tmp_path), None)[0]
    assert first.cause.name == cause
    assert sum(node.op_type == operator for node in first.nodes) == count
    assert first.own == len(first.nodes)
    four = {"s8-activations", "weight-dequantized", "gemm-fusion", "qdq-around-float-op"}
    assert not four & set(named(view_of(remedied(), tmp_path)))


@pytest.mark.parametrize("case", ["s8 data, slow kernel", "s8 data, not fused"])
def test_signed_data_is_right_on_arm(case, tmp_path):
    model = PLANTED[case][0]()
    assert "s8-activations" not in named(view_of(model, tmp_path, machine="arm"))


@pytest.mark.skipif(not X86, reason="onnxruntime fuses s8 data on ARM")
def test_a_signed_kernel_that_was_measured_fast_is_no_fault(tmp_path):
    slow = view_of(planted.signed_slow_kernel(), tmp_path)
    fast = Int8View(slow.source, slow.graph, "x86", slow.isa, Int8Speed(3.0, 1.0, 1.1, measured=True), slow.read)
    assert "s8-activations" in named(slow)
    assert "s8-activations" not in named(fast)


@pytest.mark.skipif(not X86, reason="onnxruntime fuses s8 data on ARM")
def test_dequantized_weights_are_told_also_as_a_consequence(tmp_path):
    view = view_of(planted.gemm_blocked(), tmp_path)
    findings = named(view)
    follows = findings["weight-dequantized"]
    assert follows.counted_in == {"gemm-fusion": 3}
    assert follows.own == 0
    shares = {position: 1 / len(view.graph.nodes) for position in range(len(view.graph.nodes))}
    timed = named(view, shares)
    assert timed["weight-dequantized"].cost == 0
    assert timed["weight-dequantized"].time == pytest.approx(3 / len(view.graph.nodes))
    pairs, gemms = 6, 3 * (1 - 1 / Int8Speed().float_over_u8s8)
    assert timed["gemm-fusion"].cost == pytest.approx((pairs + gemms) / len(view.graph.nodes))


def float16():
    model = float_chain(batch=1)
    half = [
        numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name) for t in model.graph.initializer
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(half)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def blocked(block):
    rng = np.random.default_rng(0)
    weights = {
        "levels": rng.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8),
        "scales": np.full((WIDTH // block, WIDTH), 0.01, np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["levels", "scales"], ["w"], name="blocks", axis=0, block_size=block),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="fc"),
    ]
    return model_of(nodes, weights, SHAPE, "y")


def by_channel(size):
    weights = {"scale": np.full(size, 0.05, np.float32), "zero": np.full(size, 128, np.uint8)}
    weights = {name: value if size > 1 else value.reshape(()) for name, value in weights.items()}
    weights |= {"w": np.full((WIDTH, WIDTH), 3, np.int8), "w_scale": np.float32([0.1]).reshape(())}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=2),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], axis=2),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["wd"]),
        helper.make_node("MatMul", ["d", "wd"], ["y"], name="fc"),
    ]
    return model_of(nodes, weights, SHAPE, "y")


def convolution(*, output_pair=True, channels=3, kernel=3):
    rng = np.random.default_rng(0)
    weights = {
        "shape": np.array([-1, channels, 8, 8], np.int64),
        "back": np.array([-1, ROWS, WIDTH], np.int64),
        "scale": np.float32(0.05),
        "zero": np.uint8(128),
        "w": rng.integers(-127, 128, (channels, channels, kernel, kernel)).astype(np.int8),
        "w_scale": np.float32(0.01),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["image"]),
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["wd"]),
        helper.make_node("Conv", ["d", "wd"], ["c"], name="conv", pads=[kernel // 2] * 4),
    ]
    if output_pair:
        nodes += [
            helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["cq"]),
            helper.make_node("DequantizeLinear", ["cq", "scale", "zero"], ["cd"]),
        ]
    nodes.append(helper.make_node("Reshape", ["cd" if output_pair else "c", "back"], ["y"]))
    return model_of(nodes, {name: np.asarray(value) for name, value in weights.items()}, SHAPE, "y")


def integer_convolution():
    weights = {
        "shape": np.array([-1, 16, 8, 8], np.int64),
        "back": np.array([-1, ROWS, WIDTH], np.int64),
        "w": np.ones((16, 16, 3, 3), np.int8),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["image"]),
        helper.make_node("DynamicQuantizeLinear", ["image"], ["q", "scale", "zero"], name="ranges"),
        helper.make_node("ConvInteger", ["q", "w", "zero"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["f", "back"], ["y"]),
    ]
    return model_of(nodes, weights, SHAPE, "y")


def smoothed(*, folded):
    weights = {"gain": np.ones(WIDTH, np.float32), "shift": np.zeros(WIDTH, np.float32)}
    weights |= {"w": np.eye(WIDTH, dtype=np.float32), "factor": np.linspace(0.5, 2, WIDTH).astype(np.float32)}
    nodes = [helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], name="norm")]
    if not folded:
        nodes.append(helper.make_node("Mul", ["n", "factor"], ["s"], name="smooth"))
    nodes.append(helper.make_node("MatMul", ["n" if folded else "s", "w"], ["y"], name="fc"))
    return with_pairs(model_of(nodes, weights, SHAPE, "y"), MATMUL, signed=False)


def integer_product(weight_type, zero_point):
    weights = {
        "w": np.ones((WIDTH, WIDTH), weight_type),
        "w_zero": np.array(zero_point, weight_type),
        "scale": np.float32(0.05).reshape(()),
        "zero": np.array(128, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero", "w_zero"], ["i"], name="fc"),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    return model_of(nodes, {name: np.asarray(value) for name, value in weights.items()}, SHAPE, "y")


def half_an_addition():
    model = with_pairs(float_chain(bias=False), MATMUL, signed=False)
    model.graph.node.append(helper.make_node("Add", ["x_dq", model.graph.output[0].name], ["sum"], name="sum"))
    model.graph.output[0].name = "sum"
    return model


OTHERS = {
    "float16-on-cpu": (float16, float_chain, "Cast"),
    "blocked-quantization": (lambda: blocked(8), lambda: blocked(16), "DequantizeLinear"),
    "per-channel-activations": (lambda: by_channel(WIDTH), lambda: by_channel(1), "MatMulIntegerToFloat"),
    "partly-quantized": (lambda: convolution(output_pair=False), lambda: convolution(), "Conv"),
    "integer-convolution": (lambda: convolution(), lambda: convolution(channels=16), "QLinearConv"),
    "layout-transposes": (lambda: convolution(channels=16), lambda: with_pairs(float_chain(), MATMUL, signed=False),
                          "Transpose"),
    "dynamic-quantization": (integer_convolution, lambda: convolution(), "DynamicQuantizeLinear"),
    "smoothing-not-folded": (lambda: smoothed(folded=False), lambda: smoothed(folded=True), "Mul"),
    "asymmetric-weights": (lambda: integer_product(np.uint8, 128), lambda: integer_product(np.int8, 0),
                           "MatMulInteger"),
    "float-weights": (float_chain, lambda: planted.gemm_lowered(), "MatMul"),
}  # fmt: skip


@pytest.mark.parametrize("cause", OTHERS)
def test_other_causes(cause, tmp_path):
    faulty, clean, operator = OTHERS[cause]
    found = named(view_of(faulty(), tmp_path))
    assert cause in found
    assert operator in operators(found[cause])
    assert cause not in named(view_of(clean(), tmp_path))


def test_integer_convolutions_without_a_kernel_are_named(tmp_path):
    finding = named(view_of(integer_convolution(), tmp_path))["integer-convolution"]
    assert [node.op_type for node in finding.nodes] == ["ConvInteger"]


def test_an_addition_of_which_one_side_is_quantized(tmp_path):
    finding = named(view_of(half_an_addition(), tmp_path))["partly-quantized"]
    assert list(finding.reasons) == ["Add: its input 1 is not quantized"]


def test_wide_weights_saturate_only_without_vnni(tmp_path):
    model = planted.gemm_lowered()  # weights over the whole of -127 ... 127
    for machine, isa, expected in (("x86", "avx2", True), ("x86", "avx512_vnni", False), ("arm", "asimddp", False)):
        assert ("saturation-risk" in named(view_of(model, tmp_path, machine=machine, isa=isa))) == expected
    narrow = onnx.ModelProto()
    narrow.CopyFrom(model)
    for tensor in narrow.graph.initializer:
        levels = numpy_helper.to_array(tensor)
        if levels.dtype == np.int8:
            tensor.CopyFrom(numpy_helper.from_array(levels // 2, tensor.name))
    assert "saturation-risk" not in named(view_of(narrow, tmp_path, isa="avx2"))


def test_equal_weights_are_named(tmp_path):
    view = view_of(float_chain(), tmp_path)
    twice = Int8View(view.source, view.graph, "x86", view.isa, view.speed, view.read, ((("w0", "w1"), 16384),))
    finding = named(twice)["duplicated-weights"]
    assert list(finding.reasons) == ["w1: 16,384 bytes again"]
    assert "duplicated-weights" not in named(view)


def test_a_float_graph_has_one_finding(tmp_path):
    assert list(named(view_of(float_chain("gelu"), tmp_path))) == ["float-weights"]


def test_no_node_counts_twice(tmp_path):
    model = with_pairs(float_chain("norm", batch=1), EVERYTHING, signed=True, outputs=True)
    view = view_of(model, tmp_path)
    shares = {position: 1 / len(view.graph.nodes) for position in range(len(view.graph.nodes))}
    findings = explain_graph(view, shares)
    own = [id(node) for finding in findings if not finding.counted_in for node in finding.nodes]
    assert len(own) == len(set(own)) > 0
    assert 0 < sum(finding.cost for finding in findings) <= 1
    assert [finding.cost for finding in findings] == sorted((finding.cost for finding in findings), reverse=True)


@pytest.mark.parametrize("shape", [("batch", WIDTH), (1, ROWS, WIDTH)])
@pytest.mark.parametrize("activation", ["Relu", "Tanh"])
def test_gemm_that_took_up_an_activation(shape, activation, tmp_path):
    weights = {"w": np.eye(WIDTH, dtype=np.float32), "b": np.ones(WIDTH, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node(activation, ["a"], ["y"]),
    ]
    model = with_pairs(model_of(nodes, weights, shape, "y"), MATMUL, signed=False)
    finding = explain_graph(view_of(model, tmp_path), None)[0]
    assert finding.cause.name == "gemm-fusion"
    assert operators(finding) <= {"Gemm", "FusedGemm", "DequantizeLinear", "QuantizeLinear"}


@pytest.mark.skipif(not X86, reason="onnxruntime fuses s8 data on ARM")
def test_s8_data_that_onnxruntime_converts_is_told_and_costs_nothing(tmp_path):
    model = with_pairs(float_chain("gelu"), MATMUL, signed=True)
    view = view_of(model, tmp_path)
    assert [node.op_type for node in view.graph.nodes].count("MatMulIntegerToFloat") == 3
    finding = named(view, dict.fromkeys(range(len(view.graph.nodes)), 0.1))["s8-activations"]
    assert finding.cost == 0
    assert finding.reasons == {"s8 Q/DQ, turned to u8 when the session loaded: that costs nothing": 3}


def test_the_table_is_whole():
    names = [cause.name for cause in CAUSES]
    assert len(set(names)) == len(names)
    for cause in CAUSES:
        assert cause.why
        assert cause.remedy
        assert cause.title


def test_a_new_cause_is_one_entry(tmp_path, monkeypatch):
    from vlm_edge.explain import causes as int8_causes

    def gelus(view):
        return (Hit(node, 0.25, "a Gelu") for node in view.graph.nodes if node.op_type == "Gelu")

    entry = int8_causes.Cause("gelu", "there is a Gelu", gelus, "because", "remove it")
    monkeypatch.setattr(int8_causes, "CAUSES", (entry, *CAUSES))
    model = planted.around_products("gelu")
    assert len(named(view_of(model, tmp_path))["gelu"].nodes) == 3


def test_the_graph_of_a_name_that_is_computed_has_no_type():
    view = Int8View(Graph(float_chain()), Graph(float_chain()), "x86", frozenset(), Int8Speed(), {}.get)
    assert view.dtype("m0") is None
    assert view.dtype("x") == np.float32
    assert view.dtype("nowhere") is None
