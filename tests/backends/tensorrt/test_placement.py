"""Pairs that stand elsewhere than NVIDIA recommends: each is found, and built by NVIDIA's compiler all the same.

Some leave a layer in floating point, which the plan says; the others cost a few roundings at most.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from proto_passes import misplaced, violations
from rtx import answer
from tensorrt_network import before, constant, network, node_of, pair, reading

from vlm_edge.backends.tensorrt_rtx.plan import in_float

LAYERS = {"conv", "product", "scores", "context", "mixed"}


def activation_by_channel(model: onnx.ModelProto) -> None:
    constant(model, "relu_scale", np.full(8, 0.02, np.float32))
    constant(model, "zeros", np.zeros(8, np.int8))
    for name in ("relu_q", "relu_d"):
        reading(model, name, 2, "zeros")


def weight_by_input(model: onnx.ModelProto) -> None:
    node_of(model, "matrix_d").attribute[0].i = 0


def gemm_by_input(model: onnx.ModelProto) -> None:
    node_of(model, "gemm_d").attribute[0].i = 1


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


PLANTED: list[tuple[str, str, Callable[[onnx.ModelProto], None], set[str]]] = [
    ("granularity", "relu_q", activation_by_channel, {"product"}),
    ("axis", "matrix_d", weight_by_input, {"product"}),
    ("axis", "gemm_d", gemm_by_input, {"mixed"}),
    ("pair", "x_q", moved_levels, set()),
    ("pair", "x_d", restored_otherwise, set()),
    ("pair", "x_q", levels_as_output, set()),
    ("inputs", "conv", float_activation, {"conv"}),
    ("inputs", "product", float_weight, {"product"}),
    ("attention", "scores", half_an_attention, {"context"}),
    ("output", "conv_pd", pair_before_relu, set()),
    ("output", "biased_pd", pair_before_addition, set()),
    ("residual", "sum", float_skip, set()),
    ("bias", "conv", quantized_bias, set()),
    ("bias", "biased", quantized_added_bias, set()),
    ("stray", "context_pd", stray_pair, set()),
]
"""Rows of the broken recommendation, its node, the change, and the layers that the compiler then leaves in float."""


def test_all_layers_of_the_network_run_in_integers() -> None:
    model = network()
    assert misplaced(model) == []
    plan = answer(model).plan
    assert plan is not None
    assert {name: name in in_float(plan) for name in LAYERS} == dict.fromkeys(LAYERS, False)


@pytest.mark.parametrize(
    ("rule", "node", "plant", "left"), PLANTED, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_pair_elsewhere_is_found_and_the_compiler_builds_all_the_same(
    rule: str, node: str, plant: Callable[[onnx.ModelProto], None], left: set[str]
) -> None:
    model = network()
    plant(model)
    assert violations(model) == []
    assert (rule, node) in [(each.rule, each.node) for each in misplaced(model)]
    plan = answer(model).plan
    assert plan is not None
    assert in_float(plan) & LAYERS == left


def test_axes_may_count_from_the_back() -> None:
    model = network()
    for name, axis in (("kernel_d", -4), ("matrix_d", -1), ("gemm_d", -2)):
        node_of(model, name).attribute[0].i = axis
    assert misplaced(model) == []
    plan = answer(model).plan
    assert plan is not None
    assert not in_float(plan) & LAYERS
