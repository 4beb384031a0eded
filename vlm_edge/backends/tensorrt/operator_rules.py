"""Checks of single operators for TensorRT: is it known, and are a quantizer's type, scale and zero point allowed?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.edit import attribute, constant, maker, name_of, name_of_input, optional_input, tensor_of
from vlm_edge.graphs.ops import MICROSOFT


class Fault(NamedTuple):
    """A rule that is broken, where, and how."""

    rule: str
    node: str
    tensor: str
    problem: str


OPSETS = range(13, 25)
"""Operator sets that TensorRT 10.15 parses and that have quantization axes (13). TensorRT 10.0 ends at 20."""

_UNSUPPORTED = (
    "AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress "
    "ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxRoiPool MaxUnpool "
    "MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv "
    "QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert "
    "SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit "
    "TfIdfVectorizer Unique"
)
UNSUPPORTED = frozenset(_UNSUPPORTED.split())
"""Operators with an N in the parser's list."""

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
NARROW = frozenset(
    {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT8E4M3FN}
    | {ir.DataType.FLOAT4E2M1}
)
"""Types that only a DequantizeLinear reads."""
QUANTIZED = frozenset({ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4, ir.DataType.FLOAT4E2M1})
WEIGHT_ONLY = frozenset({ir.DataType.INT4})
BLOCKS = (64, 128)
"""Elements of an INT4 weight that may share a scale."""
_NO_CAST = frozenset({"Cast", "CastLike", "Resize", "Pad", "Where", "Loop", "If", "Scan", "Constant"}) | QUANTIZERS
"""Operators whose floating-point inputs may differ in type."""


def operator_faults(model: ir.Model) -> Iterator[Fault]:
    """Operator set, unknown operators (inner graphs too), plug-ins between pairs, integers that are computed on."""
    version = model.opset_imports.get("", 0)
    if version not in OPSETS:
        allowed = f"{OPSETS.start} to {OPSETS.stop - 1}"
        yield Fault("opset", "", "", f"operator set {version or 'none'}; allowed: {allowed}")
    for node in model.graph.all_nodes():
        if problem := _unknown(node):
            yield Fault("operator", name_of(node), "", problem)
    for node in model.graph:
        if node.domain and not _is_standard(node):
            around = [value for value in node.inputs if maker(value, "DequantizeLinear")]
            around += [value for value in node.outputs if any(r.op_type == "QuantizeLinear" for r in value.consumers())]
            if around and around[0] is not None:
                problem = f"{node.op_type} stands between DequantizeLinear and Q"
                yield Fault("plugin", name_of(node), str(around[0].name), problem)
    for value in model.graph.initializers.values():
        tensor = tensor_of(value)
        for node in value.consumers() if tensor is not None and tensor.dtype in NARROW else ():
            if tensor is not None and node.op_type not in QUANTIZERS:
                problem = f"{node.op_type} reads {tensor.dtype.name} constants"
                yield Fault("levels", name_of(node), str(value.name), problem)


def quantizer_faults(graph: ir.Graph, types: Mapping[str, ir.DataType]) -> Iterator[Fault]:
    """The parameters of every QuantizeLinear and DequantizeLinear.

    Args:
        types: the element type of every tensor where it is known.
    """
    for node in graph:
        if node.op_type in QUANTIZERS:
            yield from _type_faults(node)
            yield from _zero_point_faults(node)
            yield from _scale_faults(node, types)
            yield from _block_faults(node)


def type_faults(graph: ir.Graph, types: Mapping[str, ir.DataType]) -> Iterator[Fault]:
    """Operators that mix floating-point types: strong typing wants a Cast there."""
    for node in graph:
        found = {types.get(str(value.name)) for value in node.inputs if value is not None}
        floats = [each for each in found if each in FLOATS]
        if len(floats) > 1 and node.op_type not in _NO_CAST:
            names = ", ".join(sorted(each.name for each in floats if each is not None))
            yield Fault("types", name_of(node), name_of_input(node, 0), f"{node.op_type} reads {names}")


def element_types(model: ir.Model) -> dict[str, ir.DataType]:
    """The element type of every tensor that ONNX can infer, by its name; without the constants' values."""
    bare = model.clone()
    for value in list(bare.graph.initializers.values()):
        bare.graph.initializers.pop(str(value.name))
        if not value.is_graph_input():
            bare.graph.inputs.append(value)
        value.const_value = None
    for value in (value for node in bare.graph for value in node.outputs if not value.is_graph_output()):
        value.type = value.shape = None
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(bare)).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    return {value.name: ir.DataType(value.type.tensor_type.elem_type) for value in values}


def quantized_type(node: ir.Node) -> ir.DataType:
    """The type of the integers that a quantizer writes or reads; UNDEFINED where nothing says it."""
    if node.op_type == "DequantizeLinear":
        tensor, source = tensor_of(node.inputs[0]), maker(node.inputs[0], "QuantizeLinear")
        if tensor is not None:
            return tensor.dtype
        return ir.DataType.UNDEFINED if source is None else quantized_type(source)
    named = optional_input(node, 2)
    if named is not None:
        tensor = tensor_of(named)
        return ir.DataType.UNDEFINED if tensor is None else tensor.dtype
    return ir.DataType(attribute(node, "output_dtype", 0) or ir.DataType.UINT8)


def is_weight(node: ir.Node) -> bool:
    """Whether a quantizer works on a constant: an integer one, or a floating-point one behind a QuantizeLinear."""
    source = maker(node.inputs[0], "QuantizeLinear") if node.op_type == "DequantizeLinear" else None
    return is_weight(source) if source is not None else tensor_of(node.inputs[0]) is not None


def _type_faults(node: ir.Node) -> Iterator[Fault]:
    found = quantized_type(node)
    if found not in QUANTIZED:
        yield Fault("type", name_of(node), name_of_input(node, 0), f"quantized to {found.name}")
    elif found in WEIGHT_ONLY and not is_weight(node):
        problem = f"an activation quantized to {found.name}, which is for weights"
        yield Fault("type", name_of(node), name_of_input(node, 0), problem)


def _zero_point_faults(node: ir.Node) -> Iterator[Fault]:
    named = optional_input(node, 2)
    if named is None:
        return
    value, scale, name = constant(named), tensor_of(node.inputs[1]), str(named.name)
    if value is None:
        yield Fault("zero-point", name_of(node), name, "its zero point is computed")
    elif value.astype(np.float32).any():
        yield Fault("zero-point", name_of(node), name, f"its zero point is {_first(value)}, not 0")
    elif scale is not None and scale.size != value.size:
        yield Fault("zero-point", name_of(node), name, f"{value.size} zero points for {scale.size} scales")


def _scale_faults(node: ir.Node, types: Mapping[str, ir.DataType]) -> Iterator[Fault]:
    name, tensor, value = name_of_input(node, 1), tensor_of(node.inputs[1]), constant(node.inputs[1])
    if value is None or tensor is None:
        yield Fault("scale-constant", name_of(node), name, "its scale is computed")
        return
    numbers = value.astype(np.float64)
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        yield Fault("scale-value", name_of(node), name, f"a scale is {numbers[~(numbers > 0)].min(initial=np.inf)}")
    data = types.get(name_of_input(node, 0), ir.DataType.UNDEFINED)
    mixed = node.op_type == "QuantizeLinear" and data in FLOATS and data != tensor.dtype
    if tensor.dtype not in FLOATS or mixed:
        yield Fault("scale-type", name_of(node), name, f"the scale is {tensor.dtype.name}, the data {data.name}")


def _block_faults(node: ir.Node) -> Iterator[Fault]:
    """INT4 weights in blocks of 64 or 128 along one of the last two dimensions, and nothing else in blocks."""
    size, four_bits = attribute(node, "block_size", 0), quantized_type(node) in WEIGHT_ONLY
    values, scale = tensor_of(node.inputs[0]), tensor_of(node.inputs[1])
    if values is None or scale is None or not (size or four_bits):
        return
    shape, rank = values.shape.numpy(), len(values.shape)
    axis = attribute(node, "axis", 1) % max(1, rank)
    blocks = [extent // size if size and place == axis else extent for place, extent in enumerate(shape)]
    problem = ""
    if not four_bits:
        problem = "scales by block, which are for INT4 weights"
    elif size not in BLOCKS:
        problem = f"blocks of {size}; allowed: {' and '.join(map(str, BLOCKS))}" if size else "INT4 without blocks"
    elif axis < rank - 2:
        problem = f"blocks along axis {axis} of {rank}; allowed: the last two"
    elif shape[axis] % size or list(scale.shape.numpy()) != blocks:
        problem = f"scales {list(scale.shape.numpy())} for {list(shape)} in blocks of {size} along axis {axis}"
    if problem:
        yield Fault("block", name_of(node), name_of_input(node, 0), problem)


def _unknown(node: ir.Node) -> str:
    """Why the parser doesn't know an operator; empty if it does."""
    if node.domain == MICROSOFT:
        return f"{node.op_type} is onnxruntime's own ({MICROSOFT})"
    if not _is_standard(node):
        return f"{node.op_type} of {node.domain} is no ONNX operator"
    if node.op_type in UNSUPPORTED:
        return f"{node.op_type} is not supported"
    if node.op_type == "LayerNormalization" and sum(bool(value.name) for value in node.outputs) > 1:
        return "LayerNormalization: only its first output is supported"
    if node.op_type == "Attention":
        past = sum(value is not None for value in node.inputs[4:]) + sum(bool(v.name) for v in node.outputs[1:])
        if past or attribute(node, "softcap", 0.0) or attribute(node, "qk_matmul_output_mode", 0):
            return "Attention: past keys, further outputs and softcap are not supported"
    return ""


def _is_standard(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx")


def _first(value: NDArray[Any]) -> Any:
    flat = value.astype(np.float32).ravel()
    return flat[flat != 0][0]
