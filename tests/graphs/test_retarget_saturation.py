"""Sums of two products stay within 16 bits, where the processor saturates them: x86 without VNNI, and ARM's smlal.

x86 without VNNI multiplies u8 by s8 and adds neighbours with ``_mm256_maddubs_epi16``, which saturates the sum at 16
bits (Intel Intrinsics Guide). NEON adds two s8 products into 16 bits with ``smull`` and ``smlal``, which wrap around.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from proto_passes import dynamic_linears, quantize_graph

from vlm_edge.backends.lowering import lowering_of
from vlm_edge.quantizers.affine import quantize_weight

LIMITS = np.iinfo(np.int16)
NNCF_HALF_RANGE = 64
"""The largest level that NNCF's overflow fix gives a weight (half of 8 bits)."""


def maddubs(data: NDArray[np.uint8], weight: NDArray[np.int8]) -> NDArray[np.int16]:
    """Neighbouring products added with saturation, as the instruction does; the last axis is even."""
    products = data.astype(np.int32) * weight.astype(np.int32)
    sums = products[..., ::2] + products[..., 1::2]
    return np.clip(sums, LIMITS.min, LIMITS.max).astype(np.int16)


def exact(data: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.int64]:
    products = data.astype(np.int64) * weight.astype(np.int64)
    return products[..., ::2] + products[..., 1::2]


def test_seven_bits_are_what_fits_and_eight_do_not() -> None:
    data, weights = np.arange(256), np.arange(-128, 128)
    sums = 2 * np.outer(data, weights)  # the extremes of a pair are those of one product, twice
    fits = (sums.min(axis=0) >= LIMITS.min) & (sums.max(axis=0) <= LIMITS.max)
    assert (weights[fits].min(), weights[fits].max()) == (-64, 64)
    assert 2 * 255 * 63 == 32130 <= LIMITS.max
    assert 2 * 255 * NNCF_HALF_RANGE == 32640 <= LIMITS.max
    assert LIMITS.max < 2 * 255 * 65


def test_signed_levels_fit_because_no_weight_is_minus_128() -> None:
    assert LIMITS.max >= 2 * 128 * 127
    assert LIMITS.max < 2 * 128 * 128


@given(
    values=hnp.arrays(np.float32, (6, 8), elements=st.floats(-1e3, 1e3, width=32)),
    data=hnp.arrays(np.uint8, (8,)),
    bits=st.sampled_from([7, 8]),
)
def test_weights_of_seven_bits_never_saturate(values: NDArray[Any], data: NDArray[Any], bits: int) -> None:
    levels, _ = quantize_weight(values, 0, bits=bits)
    assert levels.min() >= -127
    if bits == 7:
        np.testing.assert_array_equal(maddubs(data, levels), exact(data, levels))


def test_eight_bits_do_saturate() -> None:
    data, weight = np.full(2, 255, np.uint8), np.full(2, 127, np.int8)
    assert maddubs(data, weight)[0] == LIMITS.max < exact(data, weight)[0]


def linear() -> onnx.ModelProto:
    """x @ w + bias with weights that all lie at the ends of their range."""
    model: onnx.ModelProto = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        linear (float[rows, 48] x) => (float[rows, 32] y) {
          product = MatMul (x, w)
          y = Add (product, bias)
        }"""
    )
    signs = np.random.default_rng(0).choice([-1, 1], (48, 32))
    for name, value in (("w", signs * 0.3), ("bias", np.ones(32))):
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return model


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
def test_graphs_for_x86_without_vnni_stay_within_16_bits(scheme: str) -> None:
    generator = np.random.default_rng(1)
    feeds = [{"x": generator.normal(size=(5, 48)).astype(np.float32)} for _ in range(4)]
    graph = quantize_graph(linear(), scheme, feeds, lowering_of("onnxruntime", "x86"))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    kernels = [node for node in graph.graph.node if node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")]
    assert len(kernels) == 1
    weight = constants[kernels[0].input[1]].T  # the pairs run along the inputs
    assert np.abs(weight.astype(int)).max() in (63, 64)
    for data in (np.full(48, 255, np.uint8), np.tile(np.array([255, 0], np.uint8), 24)):
        np.testing.assert_array_equal(maddubs(data, weight), exact(data, weight))


def test_dynamic_layers_take_the_bits_they_are_given() -> None:
    for bits, top in ((7, 63), (8, 127)):
        constants = [
            numpy_helper.to_array(tensor) for tensor in dynamic_linears(linear(), weight_bits=bits).graph.initializer
        ]
        (levels,) = (value for value in constants if value.dtype == np.int8)
        assert np.abs(levels.astype(int)).max() == top
