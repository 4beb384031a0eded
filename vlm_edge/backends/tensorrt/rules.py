"""TensorRT's rules for a graph, checked before TensorRT sees it: what it refuses, or computes otherwise than ONNX says.

Every rule was proven against NVIDIA's own compiler (tests/backends/tensorrt/test_rules.py plants a fault for each and
holds the compiler to its answer, in TensorRT-RTX 1.7.1, which shares TensorRT's network API and ONNX parser). Where it
builds all the same there is no rule: NVIDIA's documentation recommends places for Q/DQ pairs, and
:class:`vlm_edge.graphs.passes.tensorrt_form.TensorRtForm` follows it, but a graph that doesn't is no error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from vlm_edge.errors import VlmEdgeError
from vlm_edge.graphs.edit import attribute, constant, maker, name_of, optional_input, tensor_of
from vlm_edge.graphs.files import load_graph
from vlm_edge.graphs.shapes import element_types

_QUANTIZE_AGAIN = "quantize the component again for a target with `engine: tensorrt`"

RULES: dict[str, str] = {
    "operator": "start from the exported graph, not from another engine's",
    "levels": _QUANTIZE_AGAIN,
    "type": _QUANTIZE_AGAIN,
    "zero-point": _QUANTIZE_AGAIN,
    "scale": "calibrate with more samples",
    "types": "put a Cast before the operator",
}
"""The remedy for a violation of each."""

_UNSUPPORTED = (
    "AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress "
    "ConcatFromSequence ConvInteger CumProd DFT DeformConv Det DynamicQuantizeLinear ImageDecoder MatMulInteger "
    "MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement "
    "OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty "
    "SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat "
    "StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique"
)
UNSUPPORTED = frozenset(_UNSUPPORTED.split())
"""ONNX operators that the parser says it does not support."""

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
QUANTIZED = frozenset({ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1})
"""Types that a quantizer may have. As constants they are read by a DequantizeLinear alone."""
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_NO_CAST = frozenset({"Cast", "CastLike", "Resize", "Pad", "Where", "Loop", "If", "Scan", "Constant"}) | QUANTIZERS
"""Operators whose floating-point inputs may differ in type."""


class Violation(NamedTuple):
    """One broken rule at ``node`` (its name, or its first output where it has none), and the compiler's words to it."""

    rule: str
    node: str
    problem: str
    answer: str


def violations(model: ir.Model) -> list[Violation]:
    """Every violation in a graph. Inner graphs hold no pairs of ours, so they are looked through for unknown operators
    only."""
    graph = model.graph
    found = [each for node in graph.all_nodes() for each in _operator_faults(node)]
    found += _level_faults(graph)
    for node in (node for node in graph if node.op_type in QUANTIZERS):
        found += [*_type_faults(node), *_zero_point_faults(node), *_scale_faults(node)]
    try:
        found += _mixed_types(graph, element_types(model))
    except onnx.shape_inference.InferenceError as error:
        found.append(Violation("types", "", f"ONNX can't infer its types: {error}", "INVALID_NODE"))
    return found


def require_tensorrt_rules(path: Path) -> None:
    """Check a graph file.

    Raises:
        VlmEdgeError: a rule is violated.
    """
    found = violations(load_graph(path))
    if not found:
        return
    rule, node, problem, answer = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise VlmEdgeError(
        f"{path}: TensorRT would not take it: {rule}: {node or 'the graph'}: {problem}{more}; its words: {answer}",
        RULES[rule],
    )


def _operator_faults(node: ir.Node) -> Iterator[Violation]:
    problem, answer = "", "UNSUPPORTED_NODE"
    if node.domain not in ("", "ai.onnx"):
        problem, answer = f"{node.op_type} of {node.domain} is no ONNX operator", "Plugin not found"
    elif node.op_type in UNSUPPORTED:
        problem = f"{node.op_type} is not supported"
    elif node.op_type == "Attention":
        problem = "TensorRT knows Attention from 10.14 on, and TensorRT-RTX 1.7.1 crashes when it builds one"
    elif node.op_type == "LayerNormalization" and sum(bool(value.name) for value in node.outputs) > 1:
        problem = "only the first output of LayerNormalization is supported"
    if problem:
        yield Violation("operator", name_of(node), problem, answer)


def _level_faults(graph: ir.Graph) -> Iterator[Violation]:
    for value in graph.initializers.values():
        tensor = tensor_of(value)
        if tensor is None or tensor.dtype not in QUANTIZED:
            continue
        for node in value.consumers():
            if node.op_type not in QUANTIZERS:
                problem = f"{node.op_type} reads {tensor.dtype.name} constants of {value.name}"
                yield Violation("levels", name_of(node), problem, f"Quantized constant ({value.name}) is only allowed")


def _type_faults(node: ir.Node) -> Iterator[Violation]:
    found = _quantized_type(node)
    if found == ir.DataType.UINT8:
        yield Violation("type", name_of(node), "quantized to UINT8", "Defaulting to INT8 instead")
    elif found == ir.DataType.INT4 and not is_weight(node):
        problem = "an activation quantized to INT4, which is for weights"
        yield Violation("type", name_of(node), problem, "CHECK(dtype == W.type()) failed")
    elif found is not None and found not in QUANTIZED:
        yield Violation("type", name_of(node), f"quantized to {found.name}", "Failed to import initializer")


def _quantized_type(node: ir.Node) -> ir.DataType | None:
    """The type of the integers that a quantizer writes or reads; None where nothing says it."""
    if node.op_type == "DequantizeLinear":
        tensor, source = tensor_of(node.inputs[0]), maker(node.inputs[0], "QuantizeLinear")
        if tensor is not None:
            return tensor.dtype
        return None if source is None else _quantized_type(source)
    named = optional_input(node, 2)
    if named is not None:
        tensor = tensor_of(named)
        return None if tensor is None else tensor.dtype
    return ir.DataType(attribute(node, "output_dtype", 0) or ir.DataType.UINT8)


def is_weight(node: ir.Node) -> bool:
    """Whether a quantizer works on a constant: an integer one, or a floating-point one behind a QuantizeLinear."""
    source = maker(node.inputs[0], "QuantizeLinear") if node.op_type == "DequantizeLinear" else None
    return is_weight(source) if source is not None else tensor_of(node.inputs[0]) is not None


def _zero_point_faults(node: ir.Node) -> Iterator[Violation]:
    named = optional_input(node, 2)
    if named is None:
        return
    value, scale, problem = constant(named), tensor_of(node.inputs[1]), ""
    if value is None:
        problem, answer = "its zero point is computed", "`zero_point` which is not an initializer"
    elif (numbers := value.astype(np.float32)).any():
        problem = f"its zero point is {numbers[numbers != 0][0]:g}, not 0"
        answer = "Non-zero zero point is not supported"
    elif scale is not None and scale.size != value.size:
        problem = f"{value.size} zero points for {scale.size} scales"
        answer = "The scale and zero point must have the same volume"
    if problem:
        yield Violation("zero-point", name_of(node), problem, answer)


def _scale_faults(node: ir.Node) -> Iterator[Violation]:
    value = constant(node.inputs[1])
    numbers = np.ones(1) if value is None else value.astype(np.float64).reshape(-1)
    if not (numbers > 0).all():
        problem = f"a scale is {numbers[~(numbers > 0)][0]:g}"
        yield Violation("scale", name_of(node), problem, "Scale coefficients must all be positive")


def _mixed_types(graph: ir.Graph, types: Mapping[str, ir.DataType]) -> Iterator[Violation]:
    """Operators that mix floating-point types: strong typing wants a Cast there."""
    for node in graph:
        found = {types.get(str(value.name)) for value in node.inputs if value is not None}
        floats = sorted(each.name for each in found if each in FLOATS)
        if len(floats) > 1 and node.op_type not in _NO_CAST:
            problem = f"{node.op_type} reads {', '.join(floats)}"
            yield Violation("types", name_of(node), problem, "must have same input types")
