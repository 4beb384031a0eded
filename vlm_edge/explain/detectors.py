"""Detectors of needless Q/DQ: one function for each cause.

A detector reads an :class:`Int8View` and yields :class:`Hit`; :mod:`vlm_edge.explain.causes` has the table of
causes that they belong to. How onnxruntime fuses Q/DQ is in its sources: core/optimizer/qdq_transformer
(selectors_actions/qdq_selectors.cc, qdq_s8_to_u8.cc) and matmul_add_fusion.cc.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from vlm_edge.explain.view import INTEGER_ELEMENTWISE, Hit, Int8View, attribute
from vlm_edge.graphs.ops import FLOAT_PRODUCTS, INTEGER_OPERATORS

FUSED_GEMM = "MatMulAddFusion"
"""Part of the name of a Gemm that onnxruntime made of MatMul and Add (with an activation: FusedGemm)."""

CONVERTED = "qdq_s8_to_u8"
"""Prefix of the names of parameters of an s8 quantizer that onnxruntime turned to u8."""

_GEMMS = ("Gemm", "FusedGemm")


def blocked_quantization(view: Int8View) -> Iterator[Hit]:
    """Q/DQ with a scale for each block of a row (opset 21)."""
    blocked = [node for node in view.graph.nodes if attribute(node, "block_size", 0) and _is_pair(node)]
    for node in blocked:
        yield Hit(node, 1.0, f"{node.op_type} in blocks of {attribute(node, 'block_size')}")
    yield from _products_below(view, blocked, "reads values quantized in blocks")


def per_channel_activations(view: Int8View) -> Iterator[Hit]:
    """Activation Q/DQ with a scale for each channel."""
    found = [
        node
        for node in view.graph.nodes
        if _is_pair(node)
        and not view.is_constant(node.input[0])
        and not attribute(node, "block_size", 0)
        and view.constant_size(node.input[1]) > 1
    ]
    for node in found:
        yield Hit(node, 1.0, f"{node.op_type} with {view.constant_size(node.input[1])} scales")
        for reader in view.readers(node.output[0]):
            if reader.op_type in INTEGER_OPERATORS:
                yield Hit(reader, 0.0, f"{reader.op_type} was fused, and refuses them when it runs")
    yield from _products_below(view, found, "reads data quantized by channel")


def gemm_fusion(view: Int8View) -> Iterator[Hit]:
    """Gemm that onnxruntime made of MatMul and Add before it looked for Q/DQ, which stay around it."""
    for node in view.graph.nodes:
        made = node.op_type in _GEMMS and FUSED_GEMM in node.name
        if made and view.data_dequantizer(node.input[0]) is not None and not _reads_kernel_output(view, node):
            yield from _stuck_product(view, node, "a float Gemm, made of MatMul and Add")


def signed_activations(view: Int8View) -> Iterator[Hit]:
    """On x86: integer kernels with s8 data, Q/DQ that stayed because the data is s8, and those that were converted."""
    if view.machine != "x86":
        return
    slow = 1 - 1 / view.speed.s8s8_over_u8s8 if view.slow_signed else 0.0
    for node in view.graph.nodes:
        if node.op_type in INTEGER_OPERATORS and slow and view.data_dtype(node) == np.int8:
            yield Hit(node, slow, f"{node.op_type} with s8 data, run by the slow kernel")
        elif node.op_type in FLOAT_PRODUCTS:
            data = [view.data_dequantizer(name) for name in node.input[:2]]
            signed = any(each is not None and view.dtype(each.input[0]) == np.int8 for each in data)
            if signed and not _missing_quantizer(view, node):
                yield from _stuck_product(view, node, f"a float {node.op_type} on s8 data, not fused")
        elif view.source_signed and node.op_type in INTEGER_ELEMENTWISE and _is_whole_unit(view, node):
            for name in node.input:
                yield from _leftovers(view, name, f"Q/DQ around {node.op_type}, not fused: one side s8, the other u8")
    for node in view.graph.nodes:
        if node.op_type == "QuantizeLinear" and len(node.input) > 2 and node.input[2].startswith(CONVERTED):
            yield Hit(node, 0.0, "s8 Q/DQ, turned to u8 when the session loaded: that costs nothing")


def requantized_unchanged(view: Int8View) -> Iterator[Hit]:
    """QuantizeLinear that gives dequantized values their old integers, and the DequantizeLinear that only it reads."""
    for node in view.graph.nodes:
        restored = view.data_dequantizer(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if restored is None or not _same_parameters(view, node, restored):
            continue
        yield Hit(node, 1.0, "quantized to the same integers as before")
        if all(reader.op_type == "QuantizeLinear" for reader in view.readers(restored.output[0])):
            yield Hit(restored, 1.0, "dequantized only to be quantized again")


def float_only_operators(view: Int8View) -> Iterator[Hit]:
    """Q/DQ around operators that run in float, and integer operators that are slower than the float one."""
    for node in view.graph.nodes:
        if view.is_float_only(node):
            for name in node.input:
                if view.weight_dequantizer(name) is not None and not _is_dequantized(view, name):
                    continue  # rows of a table: dequantizing the whole table is the cause
                yield from _leftovers(view, name, f"Q/DQ around {_shown(node)}, which runs in float")
                yield from _stray_quantizer(view, name)
        elif node.op_type == "Mul" and any(_is_sigmoid(view, name) for name in node.input):
            for name in node.input:
                yield from _leftovers(view, name, "Q/DQ around SiLU (Sigmoid and Mul), which runs in float")
        elif node.op_type == "QLinearSoftmax":
            yield Hit(node, 0.8, "Softmax in integers, slower than in float")
        elif node.op_type == "QLinearSigmoid":
            readers = [*view.readers(node.output[0])]
            readers += [
                each for row in readers if row.op_type == "DequantizeLinear" for each in view.readers(row.output[0])
            ]
            products = [each for each in readers if each.op_type in ("QLinearMul", "Mul")]
            for each in (node, *products) if products else ():
                yield Hit(each, 0.5, "SiLU as Sigmoid and Mul in integers, instead of one float operator")


def partly_quantized(view: Int8View) -> Iterator[Hit]:
    """Operators whose integer kernel needs an input or output quantized that is not."""
    for node in view.graph.nodes:
        known = node.op_type in FLOAT_PRODUCTS or node.op_type in INTEGER_ELEMENTWISE
        if not known or not any(view.data_dequantizer(name) for name in node.input if name):
            continue
        missing = _missing_quantizer(view, node)
        if missing and node.op_type in FLOAT_PRODUCTS and not _reads_kernel_output(view, node):
            yield from _stuck_product(view, node, f"{node.op_type}: {missing}")
        elif missing and node.op_type not in FLOAT_PRODUCTS:
            for name in node.input:
                yield from _leftovers(view, name, f"{node.op_type}: {missing}")


def weights_dequantized(view: Int8View) -> Iterator[Hit]:
    """DequantizeLinear of a constant: onnxruntime doesn't fold it, so it runs in every run."""
    for node in view.graph.nodes:
        if node.op_type == "DequantizeLinear" and view.of_weight(node):
            direct = [reader for reader in view.graph.consumers[node.output[0]] if reader.op_type == "Gather"]
            reader = next(iter(direct), None) or next(view.readers(node.output[0]), None)
            yield Hit(node, 1.0, _weight_reason(view, reader))


def unfused_pairs(view: Int8View) -> Iterator[Hit]:
    """Q/DQ that no other cause explains."""
    for node in view.graph.nodes:
        if node.op_type != "DequantizeLinear" or view.of_weight(node) or view.restores_convolution(node):
            continue
        readers = list(view.readers(node.output[0]))
        if readers:
            yield Hit(node, 1.0, f"dequantized for {readers[0].op_type}")


def _is_pair(node: onnx.NodeProto) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _shown(node: onnx.NodeProto) -> str:
    """The operator's usual name: x * Sigmoid(alpha * x) with alpha 1 is SiLU."""
    silu = node.op_type == "QuickGelu" and attribute(node, "alpha", 1.702) == 1
    return "SiLU (QuickGelu)" if silu else str(node.op_type)


def _same_parameters(view: Int8View, quantize: onnx.NodeProto, restore: onnx.NodeProto) -> bool:
    """Whether both have the same constant scale and zero point."""
    pairs = list(zip(quantize.input[1:], restore.input[1:], strict=False))
    values = [(view.small(first), view.small(second)) for first, second in pairs]
    same = all(first is not None and second is not None and np.array_equal(first, second) for first, second in values)
    return same and len(quantize.input) == len(restore.input)


def _reads_kernel_output(view: Int8View, node: onnx.NodeProto) -> bool:
    """Whether a product's data was quantized only because the QLinearConv before it has no float output."""
    found = [view.data_dequantizer(name) for name in node.input[:2]]
    restored = all(each is None or view.restores_convolution(each) for each in found)
    return restored and any(view.dequantizer(name) is None for name in node.input[:2])


def _is_dequantized(view: Int8View, name: str) -> bool:
    """Whether ``name`` is the output of a DequantizeLinear."""
    producer = view.graph.producers.get(name)
    return producer is not None and producer.op_type == "DequantizeLinear"


def _is_sigmoid(view: Int8View, name: str) -> bool:
    producer = view.graph.producers.get(name)
    if producer is not None and producer.op_type == "DequantizeLinear":
        producer = view.graph.producers.get(producer.input[0])
    return producer is not None and producer.op_type in ("Sigmoid", "QLinearSigmoid")


def _stray_quantizer(view: Int8View, name: str) -> Iterator[Hit]:
    """The QuantizeLinear of float values above ``name``, where all readers run in float."""
    found = view.data_dequantizer(name)
    above = view.graph.producers.get(found.input[0]) if found is not None else None
    if above is None or above.op_type != "QuantizeLinear":
        return
    restored = list(view.readers(above.output[0]))
    readers = [reader for each in restored for reader in view.readers(each.output[0])]
    if all(each.op_type == "DequantizeLinear" for each in restored) and all(map(view.is_float_only, readers)):
        yield Hit(above, 1.0, "QuantizeLinear, whose values are dequantized for operators in float")


def _leftovers(view: Int8View, name: str, reason: str) -> Iterator[Hit]:
    """The Q/DQ above ``name`` that an integer kernel would not need, nor a float one without quantization."""
    for node in view.leftover_chain(name) if name else ():
        yield Hit(node, 1.0, reason)


def _stuck_product(view: Int8View, node: onnx.NodeProto, reason: str) -> Iterator[Hit]:
    """A float product that reads quantized values, with the Q/DQ above it and its weight's DequantizeLinear."""
    yield Hit(node, 1 - 1 / view.speed.float_over_u8s8, reason)
    for name in node.input:
        yield from _leftovers(view, name, f"Q/DQ around it ({node.op_type})")


def _products_below(view: Int8View, nodes: list[onnx.NodeProto], reason: str) -> Iterator[Hit]:
    for node in nodes:
        for reader in view.readers(node.output[0]) if node.op_type == "DequantizeLinear" else ():
            if reader.op_type in FLOAT_PRODUCTS:
                yield from _stuck_product(view, reader, f"a float {reader.op_type}, {reason}")


def _is_whole_unit(view: Int8View, node: onnx.NodeProto) -> bool:
    """Whether every input is dequantized and a reader of the output quantizes: fused where the types agree."""
    readers = view.graph.consumers[node.output[0]]
    inputs = [name for name in node.input if name]
    return all(view.dequantizer(name) for name in inputs) and any(each.op_type == "QuantizeLinear" for each in readers)


def _missing_quantizer(view: Int8View, node: onnx.NodeProto) -> str:
    """The quantizer that a float operator lacks for its integer kernel, in words, or ""."""
    for index, name in enumerate(node.input[:2] if node.op_type in FLOAT_PRODUCTS else node.input):
        if name and view.dequantizer(name) is None:
            return f"its input {index} is not quantized"
    if node.op_type in _GEMMS and len(node.input) > 2 and node.input[2] and view.dequantizer(node.input[2]) is None:
        return "its bias is in float, QGemm takes s32"
    needs_output = node.op_type not in ("MatMul", "FusedMatMul", *_GEMMS)
    readers = view.graph.consumers[node.output[0]]
    if needs_output and not any(each.op_type == "QuantizeLinear" for each in readers):
        return "its output is not quantized"
    return ""


def _weight_reason(view: Int8View, reader: onnx.NodeProto | None) -> str:
    if reader is None:
        return "dequantized for the graph's output"
    if reader.op_type == "Gather":
        return "Gather: the whole table is dequantized to read a few rows"
    if reader.op_type in FLOAT_PRODUCTS:
        quantized = view.data_dequantizer(reader.input[0]) is not None
        return f"{reader.op_type} on {'quantized data that was not fused' if quantized else 'float data'}"
    return f"constant of {reader.op_type}"
