"""Quantization maths against onnxruntime's operators and scipy, and by its properties."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy.spatial.distance import cosine as cosine_distance

from vlm_edge.quantizers.affine import (
    Agreement,
    agreement,
    dequantize,
    quantize,
    quantize_rows,
    quantize_weight,
)

VALUES = st.floats(-1e3, 1e3, width=32)


def onnx_quantize(values: NDArray[np.float32], scale: np.float32, zero_point: NDArray[np.generic]) -> NDArray[np.int8]:
    """QuantizeLinear as onnxruntime runs it."""
    dtype = helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["y"])],
        "quantize",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("zero_point", dtype, []),
        ],
        [helper.make_tensor_value_info("y", dtype, values.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"x": values, "scale": np.asarray(scale), "zero_point": zero_point}
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantize_is_onnx_quantize_linear(dtype: type[np.int8] | type[np.uint8]) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(scale=3, size=1000).astype(np.float32)
    values[:4] = [0.0, 0.05, 0.15, -0.05]  # ties go to the even level
    zero_point = np.array(7, dtype)
    ours = quantize(values, np.float32(0.1), zero_point)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, onnx_quantize(values, np.float32(0.1), zero_point))


@given(arrays(np.float32, array_shapes(max_dims=1, max_side=50), elements=VALUES), st.integers(0, 255))
def test_dequantized_values_in_range_are_within_half_a_step(values: NDArray[np.float32], zero_point: int) -> None:
    scale, zero = np.float32(2.5), np.array(zero_point, np.uint8)
    low, high = 2.5 * (0 - zero_point), 2.5 * (255 - zero_point)
    inside = np.clip(values, low, high)
    restored = dequantize(quantize(inside, scale, zero), scale, zero)
    assert np.abs(restored - inside).max() <= 1.25 + 1e-3


@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=VALUES),
    st.integers(-1, 1),
    st.sampled_from([7, 8]),
)
def test_weights_are_within_half_a_step_of_their_channel(weight: NDArray[np.float32], axis: int, bits: int) -> None:
    levels, scale = quantize_weight(weight, axis, bits=bits)
    top = 2 ** (bits - 1) - 1
    assert levels.dtype == np.int8
    assert scale.shape == (weight.shape[axis],)
    assert (scale > 0).all()
    assert np.abs(levels.astype(int)).max() <= top
    step = np.expand_dims(scale, tuple(i for i in range(weight.ndim) if i != axis % weight.ndim))
    assert (np.abs(levels * step - weight) <= step * 0.501).all()


def test_a_channel_of_zeros_stays_zero() -> None:
    levels, scale = quantize_weight(np.zeros((3, 2), np.float32), 0)
    assert not levels.any()
    assert np.isfinite(scale).all()


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=VALUES), st.sampled_from([16, 32]))
def test_rows_are_within_half_a_step_of_their_block(table: NDArray[np.float32], block: int) -> None:
    levels, scale = quantize_rows(table, block)
    assert levels.shape == table.shape
    assert scale.shape == (table.shape[0], -(-table.shape[1] // block))
    step = np.repeat(scale, block, axis=1)[:, : table.shape[1]]
    restored = dequantize(levels, step, np.array(128, np.uint8))
    assert (np.abs(restored - table) <= step * 0.501).all()


def test_agreement_adds_up_over_runs() -> None:
    generator = np.random.default_rng(1)
    wanted = [generator.normal(size=size).astype(np.float32) for size in ((3, 4), (1, 7))]
    got = [value + 0.1 * generator.normal(size=value.shape).astype(np.float32) for value in wanted]
    empty = np.zeros((0, 2), np.float32)
    runs = (({"y": a, "none": empty}, {"y": b, "none": empty}) for a, b in zip(wanted, got, strict=True))
    totals = agreement(runs)
    assert list(totals) == ["y"]
    flat_wanted, flat_got = (np.concatenate([part.ravel() for part in parts]) for parts in (wanted, got))
    assert totals["y"].cosine == pytest.approx(1 - cosine_distance(flat_wanted, flat_got), abs=1e-6)
    noise = np.mean((flat_wanted - flat_got) ** 2)
    assert totals["y"].sqnr_db == pytest.approx(10 * np.log10(np.mean(flat_wanted**2) / noise), abs=1e-4)
    assert totals["y"].runs == 2


@pytest.mark.parametrize(
    ("reference", "value", "cosine", "sqnr_db"),
    [([0.0, 0.0], [0.0, 0.0], 1.0, 200.0), ([0.0, 0.0], [0.0, 1.0], 0.0, -200.0), ([1.0], [np.nan], -1.0, -200.0)],
)
def test_agreement_at_its_ends(reference: list[float], value: list[float], cosine: float, sqnr_db: float) -> None:
    total = Agreement()
    total.add(np.array(reference, np.float32), np.array(value, np.float32))
    assert (total.cosine, total.sqnr_db) == (cosine, sqnr_db)
