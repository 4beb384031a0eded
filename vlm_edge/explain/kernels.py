"""Detectors of slow kernels, casts, transposes and weights: one function for each cause, as in :mod:`detectors`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from vlm_edge.explain.view import Hit, Int8View, attribute

SMALLEST_WEIGHT = 1024
"""Elements of a weight; a smaller one in float32 is not reported."""

BLOCKED = "_nchwc"
"""Suffix of operators in onnxruntime's blocked layout (core/optimizer/nchwc_transformer.cc)."""

FEW_PRODUCTS = 64
"""Products summed in one output of a convolution. Below this QLinearConv was twice as slow as Conv (3 x 3 over 3
channels); above, and for depthwise convolutions, it was 2 to 3 times as fast."""


def float16_casts(view: Int8View) -> Iterator[Hit]:
    """Casts that onnxruntime put in because its CPU kernels have no float16 form."""
    for node in view.graph.nodes:
        if node.op_type == "Cast" and node.name.startswith("InsertedPrecisionFreeCast"):
            yield Hit(node, 1.0, "cast put in around an operator without a float16 kernel")


def integer_convolutions(view: Int8View) -> Iterator[Hit]:
    """Convolutions that are slower in integers than in float."""
    for node in view.graph.nodes:
        if node.op_type == "ConvInteger":
            yield Hit(node, 0.85, "ConvInteger, 5 to 18 times slower than Conv")
        elif node.op_type == "QLinearConv" and attribute(node, "group", 1) == 1:
            weight = view.graph.initializers.get(node.input[3])
            if weight is not None and int(np.prod(weight.dims[1:])) < FEW_PRODUCTS:
                yield Hit(node, 0.5, f"sums {int(np.prod(weight.dims[1:]))} products an output, too few to gain")


def layout_transposes(view: Int8View) -> Iterator[Hit]:
    """Transposes that onnxruntime put in because QLinearConv wants channels last."""
    for node in view.graph.nodes:
        if node.op_type != "Transpose":
            continue
        around = [view.graph.producers.get(node.input[0]), *view.graph.consumers[node.output[0]]]
        if any(each is not None and _is_channels_last(each) for each in around):
            yield Hit(node, 1.0, "to or from channels last")


def dynamic_ranges(view: Int8View) -> Iterator[Hit]:
    """Dynamic quantization: the range of the data is searched in every run."""
    for node in view.graph.nodes:
        if node.op_type == "DynamicQuantizeLinear":
            yield Hit(node, 1.0, "finds the range and quantizes")
        elif node.op_type == "DynamicQuantizeMatMul" and not view.chosen:
            yield Hit(node, 0.1, "finds the range inside the kernel")


def unfolded_smoothing(view: Int8View) -> Iterator[Hit]:
    """SmoothQuant's multiplication in front of a quantizer, left as an operator of its own."""
    for node in view.graph.nodes:
        if node.op_type != "Mul" or not any(view.constant_size(n) > 1 and view.is_constant(n) for n in node.input):
            continue
        readers = list(view.readers(node.output[0]))
        if readers and all(reader.op_type in ("QuantizeLinear", "DynamicQuantizeMatMul") for reader in readers):
            yield Hit(node, 1.0, "multiplies by a constant vector")


def asymmetric_weights(view: Int8View) -> Iterator[Hit]:
    """Weights whose zero point is not 0: all need another sum over the data, u8 ones run a slower kernel on x86."""
    slower = 1 - 1 / view.speed.u8u8_over_u8s8 if view.machine == "x86" else 0.0
    for node in view.graph.nodes:
        found = view.weight_of(node)
        if found is None:
            continue
        weight, zero_point = found
        unsigned = view.dtype(weight) == np.uint8
        value = view.small(zero_point) if zero_point else None
        if unsigned and slower:
            yield Hit(node, slower, f"{node.op_type} with u8 weights")
        elif value is not None and value.any():
            yield Hit(node, 0.05, f"{node.op_type} with a weight zero point other than 0")


def saturating_weights(view: Int8View) -> Iterator[Hit]:
    """u8 data times s8 weights of more than 7 bits, on x86 without VNNI: pairs of products saturate at 16 bits."""
    if view.machine != "x86" or view.has_vnni:
        return
    for node in view.graph.nodes:
        found = view.weight_of(node)
        if found is None or view.data_dtype(node) not in (np.uint8, None):
            continue
        weight = view.read(found[0])
        if weight is not None and weight.dtype == np.int8 and int(np.abs(weight.astype(np.int16)).max(initial=0)) > 64:
            yield Hit(node, 0.0, "u8 x s8 may saturate at 16 bits")


def float_weights(view: Int8View) -> Iterator[Hit]:
    """Linear layers that multiply float weights."""
    gain = 1 - 1 / view.speed.float_over_u8s8
    for node in view.graph.nodes:
        if node.op_type not in ("MatMul", "FusedMatMul", "Gemm"):
            continue
        data, stored = view.data_dequantizer(node.input[0]), decompressed(view, node)
        if (data is not None and not view.restores_convolution(data)) or (stored and view.chosen):
            continue
        if any(view.is_constant(name) and view.constant_size(name) >= SMALLEST_WEIGHT for name in node.input[:2]):
            yield Hit(node, gain, stored or "float weight, float data")


def stored_twice(view: Int8View) -> Iterator[Hit]:
    """Weights that the file holds more than once."""
    for names, size in view.equal_weights:
        for name in names[1:]:
            readers = view.source.consumers.get(name, [])
            if readers:
                yield Hit(readers[0], 0.0, f"{name}: {size:,} bytes again")


def decompressed(view: Int8View, product: onnx.NodeProto) -> str:
    """In words that a product's weight is int8 in the file and dequantized when the session loads; "" for others.

    onnxruntime names a convolution that it gives a blocked layout after its output, and its weight anew.
    """
    source = view.source
    original = source.producers.get(product.name.removesuffix(BLOCKED)) if product.name.endswith(BLOCKED) else None
    node = source.producers.get((product if original is None else original).input[1])
    while node is not None and node.op_type in ("Mul", "Cast", "Transpose", "Reshape"):
        if node.op_type == "Cast" and node.input[0] in source.initializers:
            return "weight stored in int8, computed in float"
        node = source.producers.get(node.input[0])
    return ""


def _is_channels_last(node: onnx.NodeProto) -> bool:
    return node.op_type.startswith("QLinear") and (
        node.domain == "com.ms.internal.nhwc" or bool(attribute(node, "channels_last", 0))
    )
