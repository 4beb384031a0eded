"""Graphs that OpenVINO 2026.4 can't compile or gets wrong, and the same graphs after they were rewritten for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from proto_passes import changed, chosen_masks, float_concatenations

from vlm_edge.backends import engine_available
from vlm_edge.quantizers.affine import dequantize, quantize, quantize_weight

Array = NDArray[Any]
TOKENS, WIDTH, OUTPUTS = 4, 48, 32
SCALE, ZERO = np.float32(0.03), np.int8(7)
LEVELS, SCALES = quantize_weight(np.random.default_rng(0).normal(size=(WIDTH, OUTPUTS)).astype(np.float32), 1)
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""By default OpenVINO quantizes a float tensor by itself where it is multiplied with an int8 weight."""
BIAS = np.random.default_rng(1).normal(size=OUTPUTS).astype(np.float32)


def model_of(text: str, **constants: Array) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used
    )
    onnx.checker.check_model(model)
    return model


def joined(reader: str) -> onnx.ModelProto:
    """A class token before an image's tokens, both quantized with a zero point of their own, and what reads them."""
    return model_of(
        f"""joined (float[1, 1, {WIDTH}] token, float[1, n, {WIDTH}] patches) => (float[1, m, k] y) {{
          token_levels = QuantizeLinear (token, scale, zero)
          token_again = DequantizeLinear (token_levels, scale, zero)
          patch_levels = QuantizeLinear (patches, scale, zero)
          patches_again = DequantizeLinear (patch_levels, scale, zero)
          both = Concat <axis = 1> (token_again, patches_again)
          weight = DequantizeLinear <axis = 1> (levels, scales, zeros)
          {reader}
        }}""",
        scale=SCALE,
        zero=ZERO,
        levels=LEVELS,
        scales=SCALES,
        zeros=np.zeros(OUTPUTS, np.int8),
        bias=BIAS,
        filter=np.ones((1, TOKENS + 1, 1), np.float32),
    )


PRODUCT = "product = MatMul (both, weight)\n y = Add (product, bias)"


def feed() -> dict[str, Array]:
    values = np.random.default_rng(2).normal(size=(1, TOKENS + 1, WIDTH)).astype(np.float32)
    return {"token": values[:, :1], "patches": values[:, 1:]}


def on_onnxruntime(model: onnx.ModelProto, given: dict[str, Array]) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, given)[0])


def on_openvino(model: onnx.ModelProto, given: dict[str, Array], *, fixed: bool) -> Array:
    if (reason := engine_available("openvino")) is not None:
        pytest.skip(reason)
    import openvino

    core = openvino.Core()
    read = core.read_model(model.SerializeToString())
    if fixed:
        read.reshape({name: list(value.shape) for name, value in given.items()})
    return np.asarray(core.compile_model(read, "CPU", EXACT)(given)[0])


class TestConcatenations:
    def test_openvino_can_not_compile_quantized_parts(self) -> None:
        """Where this fails with a newer OpenVINO, ``float_concatenations`` has done its service."""
        if engine_available("openvino") is None:
            import openvino

            if not str(openvino.__version__).startswith("2026.4"):
                pytest.skip(f"OpenVINO {openvino.__version__}: known of 2026.4")
        with pytest.raises(RuntimeError, match="MatMulTransformation"):
            on_openvino(joined(PRODUCT), feed(), fixed=True)

    @pytest.mark.parametrize("fixed", [False, True])
    def test_with_float_parts_it_computes_the_product(self, fixed: bool) -> None:
        model = float_concatenations(joined(PRODUCT))
        values = np.concatenate(list(feed().values()), axis=1)
        wanted = values @ (LEVELS * SCALES) + BIAS
        np.testing.assert_allclose(on_onnxruntime(model, feed()), wanted, atol=1e-4)
        np.testing.assert_allclose(on_openvino(model, feed(), fixed=fixed), wanted, atol=1e-4)

    def test_no_pair_is_left_of_what_only_the_concatenation_read(self) -> None:
        kinds = Counter(node.op_type for node in float_concatenations(joined(PRODUCT)).graph.node)
        assert kinds == {"Concat": 1, "DequantizeLinear": 1, "MatMul": 1, "Add": 1}

    def test_who_else_reads_a_part_still_reads_its_levels(self) -> None:
        model = joined(
            f"{PRODUCT.replace('y =', 'sum =')}\n first = MatMul (token_again, weight)\n y = Add (sum, first)"
        )
        changed = float_concatenations(model)
        assert Counter(node.op_type for node in changed.graph.node)["QuantizeLinear"] == 1
        token = feed()["token"]
        rounded = dequantize(quantize(token, SCALE, ZERO), SCALE, ZERO)
        both = np.concatenate(list(feed().values()), axis=1)
        wanted = both @ (LEVELS * SCALES) + BIAS + rounded @ (LEVELS * SCALES)
        np.testing.assert_allclose(on_onnxruntime(changed, feed()), wanted, atol=1e-4)

    def test_what_a_convolution_reads_stays_quantized(self) -> None:
        kinds = Counter(node.op_type for node in float_concatenations(joined("y = Conv (both, filter)")).graph.node)
        assert kinds == {"QuantizeLinear": 2, "DequantizeLinear": 2, "Concat": 1, "Conv": 1}

    def test_the_model_that_is_given_stays_as_it_is(self) -> None:
        model = joined(PRODUCT)
        before = model.SerializeToString(deterministic=True)
        float_concatenations(model)
        assert model.SerializeToString(deterministic=True) == before


LOWEST = np.finfo(np.float32).min


def masked(body: str, shape: tuple[int, ...] = (), lowest: float = LOWEST) -> onnx.ModelProto:
    return model_of(
        f"masked (int64[b, t] mask) => (float y) {{ {body} }}",
        one=np.ones(shape, np.float32),
        two=np.array(2, np.float32),
        lowest=np.full(shape, lowest, np.float32),
        many=np.full(3, lowest, np.float32),
    )


INVERTED = "seen = Cast <to = 1> (mask)\n hidden = Sub (one, seen)\n"
MASK = {"mask": np.array([[1, 1, 0], [1, 0, 0]])}


class TestMasks:
    @pytest.mark.parametrize("order", ["hidden, lowest", "lowest, hidden"])
    @pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)])
    def test_a_mask_is_chosen_and_not_computed(self, order: str, shape: tuple[int, ...]) -> None:
        model = masked(f"{INVERTED} y = Mul ({order})", shape)
        changed = chosen_masks(model)
        assert Counter(node.op_type for node in changed.graph.node) == {"Cast": 1, "Where": 1}
        wanted = np.where(MASK["mask"], np.float32(0), LOWEST)
        found = on_onnxruntime(changed, MASK)
        np.testing.assert_array_equal(found, wanted.reshape(shape[2:] + wanted.shape if len(shape) > 2 else (2, 3)))
        assert found.shape == on_onnxruntime(model, MASK).shape

    @pytest.mark.parametrize(
        "body",
        [
            "seen = Cast <to = 1> (mask)\n hidden = Sub (seen, one)\n y = Mul (hidden, lowest)",
            "seen = Cast <to = 1> (mask)\n hidden = Sub (two, seen)\n y = Mul (hidden, lowest)",
            f"{INVERTED} y = Mul (hidden, many)",
            f"{INVERTED} y = Mul (hidden, hidden)",
            f"{INVERTED} y = Add (hidden, lowest)",
            "seen = Cast <to = 1> (mask)\n half = Neg (seen)\n hidden = Sub (one, half)\n y = Mul (hidden, lowest)",
        ],
    )
    def test_other_products_are_left(self, body: str) -> None:
        model = masked(body)
        assert chosen_masks(model) == changed(model)

    def test_a_small_factor_is_no_mask(self) -> None:
        model = masked(f"{INVERTED} y = Mul (hidden, lowest)", lowest=-100.0)
        assert chosen_masks(model) == changed(model)
