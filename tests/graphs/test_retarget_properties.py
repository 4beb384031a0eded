"""Retargeting is exact: on random quantized graphs, the u8 and the s8 form give the same bits on onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from proto_passes import lower_linears, retarget_activations, symmetric_activations
from random_graphs import LAYERS, WIDTH, Builder, quantizers, random_model, run

from vlm_edge.quantizers.affine import dequantize, quantize

graphs = {
    "seed": st.integers(0, 2**32 - 1),
    "layers": st.lists(st.sampled_from(LAYERS), min_size=1, max_size=6),
    "opset": st.sampled_from([13, 17, 19, 20, 21, 23]),
    "dtype": st.sampled_from([np.int8, np.uint8]),
}


@settings(max_examples=60, deadline=None)
@given(**graphs)
def test_both_signs_give_the_same_bits(seed: int, layers: list[str], opset: int, dtype: Any) -> None:
    original = random_model(seed, dtype, layers, opset)
    other = retarget_activations(original, signed=dtype is np.uint8)
    back = retarget_activations(other, signed=dtype is np.int8)
    onnx.checker.check_model(other, full_check=True)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC"):
        expected = run(original, level)
        for model in (other, back):
            for wanted, got in zip(expected, run(model, level), strict=True):
                np.testing.assert_array_equal(got, wanted)


@settings(max_examples=60, deadline=None)
@given(**graphs)
def test_scales_are_the_same_bits_and_zero_points_shifted(seed: int, layers: list[str], opset: int, dtype: Any) -> None:
    original = random_model(seed, dtype, layers, opset)
    other = retarget_activations(original, signed=dtype is np.uint8)
    constants = {tensor.name for tensor in original.graph.initializer}
    weights = {node.output[0] for node in original.graph.node if node.input[0] in constants}
    before, after = quantizers(original), quantizers(other)
    assert before.keys() == after.keys()
    shift = 128 if dtype is np.int8 else -128
    for name, (scale, zero_point) in before.items():
        new_scale, new_zero_point = after[name]
        assert new_scale.tobytes() == scale.tobytes()
        assert new_scale.dtype == scale.dtype == np.float32
        if name in weights:
            assert new_zero_point.tobytes() == zero_point.tobytes()
        else:
            assert new_zero_point.dtype != zero_point.dtype
            np.testing.assert_array_equal(new_zero_point.astype(int), zero_point.astype(int) + shift)


@settings(max_examples=30, deadline=None)
@given(seed=graphs["seed"], layers=st.lists(st.sampled_from(["matmul", "gemm", "add"]), min_size=1, max_size=5))
def test_integer_kernels_of_both_signs_give_the_same_bits(seed: int, layers: list[str]) -> None:
    """The sums of products are exact integers; 7-bit weights, so that this holds on every x86.

    onnxruntime's extended optimizations turn an Add between quantizers into its QLinearAdd, whose result may lie one
    level off, and do so for one sign more often than for the other: with an Add, the levels below that are compared.
    """
    original = random_model(seed, np.uint8, layers, 20, weight_bits=7)
    unsigned = lower_linears(original)
    signed = lower_linears(retarget_activations(original, signed=True))
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC" if "add" in layers else "ORT_ENABLE_ALL"):
        for wanted, got in zip(run(unsigned, level), run(signed, level), strict=True):
            np.testing.assert_array_equal(got, wanted)


@settings(max_examples=60, deadline=None)
@given(
    zero_point=st.integers(0, 255),
    scale=st.floats(2**-20, 8.0, width=32),
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50),
)
def test_levels_differ_by_128_even_where_they_saturate(zero_point: int, scale: float, values: list[float]) -> None:
    data, step = np.array(values, np.float32), np.array(scale, np.float32)
    unsigned, signed = np.array(zero_point, np.uint8), np.array(zero_point - 128, np.int8)
    levels, shifted = quantize(data, step, unsigned), quantize(data, step, signed)
    np.testing.assert_array_equal(levels.astype(int), shifted.astype(int) + 128)
    assert dequantize(levels, step, unsigned).tobytes() == dequantize(shifted, step, signed).tobytes()


@settings(max_examples=40, deadline=None)
@given(**graphs)
def test_symmetric_quantizers_keep_the_range_and_exact_scales_where_they_can(
    seed: int, layers: list[str], opset: int, dtype: Any
) -> None:
    original = random_model(seed, dtype, layers, opset)
    weights = {tensor.name for tensor in original.graph.initializer}
    before, after = quantizers(original), quantizers(symmetric_activations(original))
    middle = 128 if dtype is np.uint8 else 0
    levels = np.arange(256) + (0 if dtype is np.uint8 else -128)
    for node in original.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] in weights:
            continue
        (scale, zero_point), (new_scale, new_zero_point) = before[node.output[0]], after[node.output[0]]
        assert new_zero_point.dtype == np.int8
        assert not new_zero_point.any()
        if zero_point == middle:
            assert new_scale.tobytes() == scale.tobytes()
        old = (levels - int(zero_point)) * np.float64(scale)
        found = dequantize(quantize(old.astype(np.float32), new_scale, new_zero_point), new_scale, new_zero_point)
        assert np.abs(found - old).max() <= float(new_scale) * 0.5001


def pair_model(**changes: Any) -> onnx.ModelProto:
    """x -> QuantizeLinear -> DequantizeLinear -> y, with other parameters for the second node on demand."""
    values = {"scale": np.float32(0.1), "zero": np.int8(3), "restored": np.float32(0.1), "back": np.int8(3)} | changes
    outputs = values.pop("outputs", ["y"])
    info = {"x": TensorProto.FLOAT, "y": TensorProto.FLOAT, "q": TensorProto.INT8}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantizer"),
            helper.make_node("DequantizeLinear", ["q", "restored", "back"], ["y"], name="restorer"),
        ],
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH, WIDTH, WIDTH])],
        [helper.make_tensor_value_info(name, info[name], [1, WIDTH, WIDTH, WIDTH]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_restored_scale_of_its_own_is_kept() -> None:
    model = pair_model(restored=np.float32(0.7))
    unsigned = retarget_activations(model, signed=False)
    np.testing.assert_array_equal(run(unsigned)[0], run(model)[0])
    (_, (scale, zero_point)) = quantizers(unsigned).values()
    assert (float(scale), int(zero_point)) == (pytest.approx(0.7), 131)


def test_quantizers_that_are_no_8_bit_ones_stay() -> None:
    model = pair_model(zero=np.int16(7), back=np.int16(7))
    for signed in (True, False):
        np.testing.assert_array_equal(run(retarget_activations(model, signed=signed))[0], run(model)[0])
    with pytest.raises(ValueError, match="int16"):
        symmetric_activations(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"back": np.int8(4)}, "restorer: another zero point"), ({"outputs": ["y", "q"]}, "q is an output")],
)
def test_what_has_no_exact_form_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retarget_activations(pair_model(**changes), signed=False)


def test_a_weight_with_a_pair_of_its_own_stays() -> None:
    builder = Builder(np.random.default_rng(0), np.int8)
    scale, zero = builder.constant(np.float32(0.02)), builder.constant(np.int8(0))
    levels = builder.node("QuantizeLinear", builder.constant(np.eye(WIDTH, dtype=np.float32)), scale, zero)
    builder.tensors.append(
        builder.node("MatMul", builder.dequantized("x"), builder.node("DequantizeLinear", levels, scale, zero))
    )
    model = builder.model(20)
    unsigned = retarget_activations(model, signed=False)
    assert quantizers(unsigned)[levels][1].dtype == np.int8
    np.testing.assert_array_equal(run(unsigned)[0], run(model)[0])


def test_levels_that_are_joined_before_they_are_restored() -> None:
    builder = Builder(np.random.default_rng(1), np.int8)
    scale, zero = builder.parameters()
    twice = builder.node("Add", "x", "x")
    both = builder.node("Concat", *(builder.node("QuantizeLinear", name, scale, zero) for name in ("x", twice)), axis=1)
    bias = builder.constant(np.zeros(WIDTH, np.float32))
    joined = builder.node("DequantizeLinear", both, scale, zero)
    builder.tensors.append(builder.node("Conv", joined, builder.weight(WIDTH, 2 * WIDTH, 1, 1, axis=0), bias))
    model = builder.model(20)
    np.testing.assert_array_equal(run(retarget_activations(model, signed=False))[0], run(model)[0])
