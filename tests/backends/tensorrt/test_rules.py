"""TensorRT's rules: a graph that keeps them all, and the same graph with one fault planted for every rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser
from proto_passes import violations

from vlm_edge.backends.tensorrt.rules import RULES, require_tensorrt_rules
from vlm_edge.errors import VlmEdgeError

GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
net (float[1, 8, 8, 8] x) => (float[1, 8, 8, 8] y, float[1, 8, 8, 8] context) {
  x_q = QuantizeLinear (x, x_scale, zero)
  x_d = DequantizeLinear (x_q, x_scale, zero)
  kernel_d = DequantizeLinear <axis = 0> (kernel, kernel_scale, kernel_zero)
  conv = Conv <kernel_shape = [1, 1]> (x_d, kernel_d, conv_bias)
  relu = Relu (conv)
  relu_q = QuantizeLinear (relu, relu_scale, zero)
  relu_d = DequantizeLinear (relu_q, relu_scale, zero)
  matrix_d = DequantizeLinear <axis = 1> (matrix, matrix_scale)
  product = MatMul (relu_d, matrix_d)
  biased = Add (product, bias)
  sum = Add (biased, relu_d)
  sum_q = QuantizeLinear (sum, sum_scale, zero)
  sum_d = DequantizeLinear (sum_q, sum_scale, zero)
  keys = Transpose <perm = [0, 1, 3, 2]> (sum_d)
  scores = MatMul (sum_d, keys)
  scaled = Div (scores, width)
  weights = Softmax (scaled)
  weights_q = QuantizeLinear (weights, weights_scale, zero)
  weights_d = DequantizeLinear (weights_q, weights_scale, zero)
  context = MatMul (weights_d, sum_d)
  normed = LayerNormalization (context, gamma, beta)
  rows = Reshape (sum_d, row_shape)
  gemm_d = DequantizeLinear <axis = 0> (gemm, gemm_scale)
  mixed = Gemm <transB = 1> (rows, gemm_d, gemm_bias)
  y_rows = Reshape (mixed, y_shape)
  y = Add (y_rows, normed)
}"""


def network() -> onnx.ModelProto:
    """Convolution, residual addition, attention and Gemm, all quantized as TensorRT wants it; nodes named by output."""
    generator = np.random.default_rng(0)
    values: dict[str, NDArray[Any]] = {
        "zero": np.array(0, np.int8),
        "kernel": generator.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8),
        "kernel_scale": np.full(8, 0.01, np.float32),
        "kernel_zero": np.zeros(8, np.int8),
        "matrix": generator.integers(-127, 128, (8, 8)).astype(np.int8),
        "gemm": generator.integers(-127, 128, (8, 8)).astype(np.int8),
        "row_shape": np.array([64, 8]),
        "y_shape": np.array([1, 8, 8, 8]),
        "width": np.array(2.8, np.float32),
    }
    for name in ("matrix_scale", "gemm_scale", "conv_bias", "bias", "gemm_bias", "gamma", "beta"):
        values[name] = generator.uniform(0.01, 0.02, 8).astype(np.float32)
    for name in ("x_scale", "relu_scale", "sum_scale", "weights_scale"):
        values[name] = np.array(0.02, np.float32)
    model: onnx.ModelProto = parser.parse_model(GRAPH)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model, full_check=True)
    return model


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def constant(model: onnx.ModelProto, name: str, value: Any) -> str:
    """Set an initializer, or add it; its name."""
    tensors = [tensor for tensor in model.graph.initializer if tensor.name != name]
    tensors.append(numpy_helper.from_array(np.asarray(value), name))
    fresh = onnx.GraphProto(initializer=tensors)
    del model.graph.initializer[:]
    model.graph.initializer.extend(fresh.initializer)
    return name


def reading(model: onnx.ModelProto, name: str, index: int, tensor: str) -> None:
    node_of(model, name).input[index] = tensor


def before(model: onnx.ModelProto, name: str, *nodes: onnx.NodeProto) -> None:
    """Insert nodes, named by their output, before another one."""
    position = [node.name for node in model.graph.node].index(name)
    for offset, node in enumerate(nodes):
        node.name = node.output[0]
        model.graph.node.insert(position + offset, node)


def pair(name: str, scale: str = "x_scale", zero: str = "zero") -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_pq"]),
        helper.make_node("DequantizeLinear", [f"{name}_pq", scale, zero], [f"{name}_pd"]),
    ]


def opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 25


def unsupported(model: onnx.ModelProto) -> None:
    node_of(model, "relu").op_type = "BitwiseNot"


def onnxruntime_s(model: onnx.ModelProto) -> None:
    node_of(model, "relu").domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def hidden(model: onnx.ModelProto) -> None:
    """An unsupported operator in a branch of an If."""
    inner = helper.make_graph([helper.make_node("Unique", ["x"], ["u"], name="inside")], "branch", [], [])
    before(model, "relu", helper.make_node("If", ["x"], ["chosen"], then_branch=inner, else_branch=inner))


def attention_with_past(model: onnx.ModelProto) -> None:
    before(model, "relu", helper.make_node("Attention", ["x", "x", "x", "", "x", "x"], ["attended"]))


def plugin(model: onnx.ModelProto) -> None:
    before(model, "matrix_d", helper.make_node("Fancy", ["relu_d"], ["fancy"], domain="my.plugins"))
    model.opset_import.append(helper.make_opsetid("my.plugins", 1))


def cast_weight(model: onnx.ModelProto) -> None:
    before(model, "matrix_d", helper.make_node("Cast", ["matrix"], ["cast"], to=TensorProto.FLOAT))


def unsigned(model: onnx.ModelProto) -> None:
    constant(model, "u8", np.uint8(0))
    for name in ("x_q", "x_d"):
        reading(model, name, 2, "u8")


def unsigned_by_default(model: onnx.ModelProto) -> None:
    for name in ("x_q", "x_d"):
        del node_of(model, name).input[2]


def four_bit_activation(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21
    before(model, "x_q", helper.make_node("Cast", ["zero"], ["unused"], to=TensorProto.INT8))
    model.graph.initializer.append(helper.make_tensor("i4", TensorProto.INT4, [], [0]))
    for name in ("x_q", "x_d"):
        reading(model, name, 2, "i4")


def four_bits(
    model: onnx.ModelProto, size: int, axis: int, scales: tuple[int, ...], kind: int = TensorProto.INT4
) -> None:
    """A second product of the flat input and a weight of 128 x 8 in blocks; the first one's violations are none."""
    model.opset_import[0].version = 21
    model.graph.initializer.append(helper.make_tensor("blocks", kind, [128, 8], [1] * 1024))
    constant(model, "block_scale", np.full(scales, 0.1, np.float32))
    constant(model, "flat_shape", np.array([-1, 128]))
    settings = {"axis": axis} | ({"block_size": size} if size else {})
    before(
        model,
        "x_q",
        helper.make_node("DequantizeLinear", ["blocks", "block_scale"], ["blocks_d"], name="blocks_d", **settings),
        helper.make_node("Reshape", ["x", "flat_shape"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "blocks_d"], ["wide"], name="wide"),
    )


def small_blocks(model: onnx.ModelProto) -> None:
    four_bits(model, 32, 0, (4, 8))


def no_blocks(model: onnx.ModelProto) -> None:
    four_bits(model, 0, 1, (8,))


def broken_blocks(model: onnx.ModelProto) -> None:
    four_bits(model, 64, 1, (128, 1))


def eight_bit_blocks(model: onnx.ModelProto) -> None:
    four_bits(model, 64, 0, (2, 8), TensorProto.INT8)


def asymmetric(model: onnx.ModelProto) -> None:
    constant(model, "three", np.int8(3))
    for name in ("relu_q", "relu_d"):
        reading(model, name, 2, "three")


def asymmetric_weight(model: onnx.ModelProto) -> None:
    constant(model, "kernel_zero", np.array([0, 0, 1, 0, 0, 0, 0, 0], np.int8))


def uneven_zero_point(model: onnx.ModelProto) -> None:
    constant(model, "kernel_zero", np.zeros(1, np.int8))


def computed_zero_point(model: onnx.ModelProto) -> None:
    before(model, "x_q", helper.make_node("Identity", ["zero"], ["made"]))
    for name in ("x_q", "x_d"):
        reading(model, name, 2, "made")


def computed_scale(model: onnx.ModelProto) -> None:
    before(model, "x_q", helper.make_node("Abs", ["x_scale"], ["made"]))
    for name in ("x_q", "x_d"):
        reading(model, name, 1, "made")


def negative_scale(model: onnx.ModelProto) -> None:
    constant(model, "gemm_scale", np.array([0.1, -0.1] * 4, np.float32))


def endless_scale(model: onnx.ModelProto) -> None:
    constant(model, "x_scale", np.array(np.inf, np.float32))


def half_scale(model: onnx.ModelProto) -> None:
    constant(model, "half", np.float16(0.02))
    for name in ("x_q", "x_d"):
        reading(model, name, 1, "half")


def activation_by_channel(model: onnx.ModelProto) -> None:
    constant(model, "relu_scale", np.full(8, 0.02, np.float32))
    constant(model, "zeros", np.zeros(8, np.int8))
    for name in ("relu_q", "relu_d"):
        reading(model, name, 2, "zeros")


def table_by_row(model: onnx.ModelProto) -> None:
    before(model, "relu", helper.make_node("Gather", ["gemm_d", "y_shape"], ["rows_of_it"]))
    node_of(model, "gemm_d").name = "moved"
    moved = onnx.NodeProto()
    moved.CopyFrom(node_of(model, "moved"))
    model.graph.node.remove(node_of(model, "moved"))
    before(model, "rows_of_it", moved)


def weight_by_input(model: onnx.ModelProto) -> None:
    node_of(model, "matrix_d").attribute[0].i = 0


def gemm_by_input(model: onnx.ModelProto) -> None:
    node_of(model, "gemm_d").attribute[0].i = 1


def too_few_scales(model: onnx.ModelProto) -> None:
    constant(model, "kernel_scale", np.full(4, 0.01, np.float32))
    constant(model, "kernel_zero", np.zeros(4, np.int8))


def moved_levels(model: onnx.ModelProto) -> None:
    before(model, "x_d", helper.make_node("Identity", ["x_q"], ["x_q_moved"]))
    reading(model, "x_d", 0, "x_q_moved")


def restored_otherwise(model: onnx.ModelProto) -> None:
    reading(model, "x_d", 1, constant(model, "other", np.float32(0.5)))


def levels_as_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("x_q", TensorProto.INT8, [1, 8, 8, 8]))


def float_activation(model: onnx.ModelProto) -> None:
    reading(model, "conv", 0, "x")


def float_weight(model: onnx.ModelProto) -> None:
    reading(model, "product", 1, constant(model, "float_matrix", np.eye(8, dtype=np.float32)))


def half_an_attention(model: onnx.ModelProto) -> None:
    reading(model, "context", 0, "weights")
    reading(model, "context", 1, "sum")
    reading(model, "sum_q", 0, "sum")


def pair_before_relu(model: onnx.ModelProto) -> None:
    before(model, "relu", *pair("conv"))
    reading(model, "relu", 0, "conv_pd")


def pair_before_addition(model: onnx.ModelProto) -> None:
    before(model, "sum", *pair("biased"))
    reading(model, "sum", 0, "biased_pd")


def float_skip(model: onnx.ModelProto) -> None:
    reading(model, "sum", 1, "relu")


def quantized_bias(model: onnx.ModelProto) -> None:
    constant(model, "bias_q", np.ones(8, np.int8))
    before(model, "conv", helper.make_node("DequantizeLinear", ["bias_q", "x_scale"], ["bias_d"]))
    reading(model, "conv", 2, "bias_d")


def quantized_added_bias(model: onnx.ModelProto) -> None:
    constant(model, "bias_q", np.ones(8, np.int8))
    before(model, "biased", helper.make_node("DequantizeLinear", ["bias_q", "x_scale"], ["bias_d"]))
    reading(model, "biased", 1, "bias_d")


def stray_pair(model: onnx.ModelProto) -> None:
    before(model, "normed", *pair("context"))
    reading(model, "normed", 0, "context_pd")


def two_float_types(model: onnx.ModelProto) -> None:
    """A constant of another type, which the checker of ONNX would refuse, too."""
    constant(model, "width", np.float16(2.8))


PLANTED: list[tuple[str, str, Callable[[onnx.ModelProto], None]]] = [
    ("opset", "", opset),
    ("operator", "relu", unsupported),
    ("operator", "relu", onnxruntime_s),
    ("operator", "inside", hidden),
    ("operator", "attended", attention_with_past),
    ("plugin", "fancy", plugin),
    ("levels", "cast", cast_weight),
    ("block", "blocks_d", small_blocks),
    ("block", "blocks_d", no_blocks),
    ("block", "blocks_d", broken_blocks),
    ("block", "blocks_d", eight_bit_blocks),
    ("type", "x_q", unsigned),
    ("type", "x_q", unsigned_by_default),
    ("type", "x_q", four_bit_activation),
    ("zero-point", "relu_q", asymmetric),
    ("zero-point", "kernel_d", asymmetric_weight),
    ("zero-point", "kernel_d", uneven_zero_point),
    ("zero-point", "x_q", computed_zero_point),
    ("scale-constant", "x_q", computed_scale),
    ("scale-value", "gemm_d", negative_scale),
    ("scale-value", "x_q", endless_scale),
    ("scale-type", "x_q", half_scale),
    ("granularity", "relu_q", activation_by_channel),
    ("granularity", "gemm_d", table_by_row),
    ("axis", "matrix_d", weight_by_input),
    ("axis", "gemm_d", gemm_by_input),
    ("axis", "kernel_d", too_few_scales),
    ("pair", "x_q", moved_levels),
    ("pair", "x_d", restored_otherwise),
    ("pair", "x_q", levels_as_output),
    ("inputs", "conv", float_activation),
    ("inputs", "product", float_weight),
    ("attention", "scores", half_an_attention),
    ("output", "conv_pd", pair_before_relu),
    ("output", "biased_pd", pair_before_addition),
    ("residual", "sum", float_skip),
    ("bias", "conv", quantized_bias),
    ("bias", "biased", quantized_added_bias),
    ("stray", "context_pd", stray_pair),
    ("types", "scaled", two_float_types),
]


def test_a_graph_that_keeps_all_rules_has_no_violation() -> None:
    assert violations(network()) == []


@pytest.mark.parametrize(("rule", "node", "plant"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_every_planted_fault_is_found_where_it_is(
    rule: str, node: str, plant: Callable[[onnx.ModelProto], None]
) -> None:
    model = network()
    plant(model)
    found = violations(model)
    assert (rule, node) in [(each.rule, each.node) for each in found]
    (violation, *_) = [each for each in found if (each.rule, each.node) == (rule, node)]
    assert violation.problem
    assert violation.section
    assert violation.next_step


def test_every_rule_has_a_fault_planted() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


@pytest.mark.parametrize(("size", "axis", "scales"), [(64, 0, (2, 8)), (128, -2, (1, 8))])
def test_weights_of_4_bits_in_blocks_are_allowed_beside_float_data(
    size: int, axis: int, scales: tuple[int, int]
) -> None:
    model = network()
    four_bits(model, size, axis, scales)
    assert violations(model) == []


def test_axes_may_count_from_the_back() -> None:
    model = network()
    for name, axis in (("kernel_d", -4), ("matrix_d", -1), ("gemm_d", -2)):
        node_of(model, name).attribute[0].i = axis
    assert violations(model) == []


def test_types_that_contradict_each_other_are_a_violation() -> None:
    model = network()
    node_of(model, "relu").domain = "nobody.knows"
    assert {("operator", "relu"), ("types", "")} <= {(each.rule, each.node) for each in violations(model)}


def test_a_file_is_refused_with_the_node_and_the_next_step(tmp_path: Path) -> None:
    model = network()
    path = tmp_path / "graph.onnx"
    onnx.save(model, path, save_as_external_data=True, location="graph.data", size_threshold=0)
    require_tensorrt_rules(path)
    asymmetric(model)
    float_skip(model)
    onnx.save(model, path, save_as_external_data=True, location="other.data", size_threshold=0)
    with pytest.raises(VlmEdgeError, match=r"graph\.onnx.*zero-point: relu_q: .* 3.*and \d+ more.*symmetric") as error:
        require_tensorrt_rules(path)
    assert error.value.hint == RULES["zero-point"].next_step
