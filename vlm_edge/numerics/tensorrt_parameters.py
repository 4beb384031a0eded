"""Checks of single operators for TensorRT: is it known, and are a quantizer's type, scale and zero point allowed?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from vlm_edge.numerics.qdq_graph import MICROSOFT, Graph, attribute


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
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
NARROW = frozenset(
    {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN}
    | {TensorProto.FLOAT4E2M1}
)
"""Types that only a DequantizeLinear reads."""
QUANTIZED = frozenset({TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.FLOAT4E2M1})
WEIGHT_ONLY = frozenset({TensorProto.INT4})
BLOCKS = (64, 128)
"""Elements of an INT4 weight that may share a scale."""
_NO_CAST = frozenset({"Cast", "CastLike", "Resize", "Pad", "Where", "Loop", "If", "Scan", "Constant"}) | QUANTIZERS
"""Operators whose floating-point inputs may differ in type."""


def operator_faults(model: onnx.ModelProto, graph: Graph) -> Iterator[Fault]:
    """Operator set, unknown operators (inner graphs too), plug-ins between pairs, levels that something computes on."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("", 0) not in OPSETS:
        allowed = f"{OPSETS.start} to {OPSETS.stop - 1}"
        yield Fault("opset", "", "", f"operator set {versions.get('', 'none')}; allowed: {allowed}")
    for node in _all_nodes(model.graph):
        if problem := _unknown(node):
            yield Fault("operator", _name(node), "", problem)
    for node in graph.nodes:
        if node.domain and not _is_standard(node):
            around = [name for name in node.input if _made_by(graph, name) == "DequantizeLinear"]
            around += [
                name for name in node.output if any(r.op_type == "QuantizeLinear" for r in graph.consumers[name])
            ]
            if around:
                yield Fault("plugin", _name(node), around[0], f"{node.op_type} stands between DequantizeLinear and Q")
    for name, tensor in graph.initializers.items():
        for node in graph.consumers[name] if tensor.data_type in NARROW else ():
            if node.op_type not in QUANTIZERS:
                problem = f"{node.op_type} reads {TensorProto.DataType.Name(tensor.data_type)} constants"
                yield Fault("levels", _name(node), name, problem)


def quantizer_faults(graph: Graph, types: Mapping[str, int]) -> Iterator[Fault]:
    """The parameters of every QuantizeLinear and DequantizeLinear.

    Args:
        types: the element type of every tensor where it is known.
    """
    for node in graph.nodes:
        if node.op_type in QUANTIZERS:
            yield from _type_faults(graph, node)
            yield from _zero_point_faults(graph, node)
            yield from _scale_faults(graph, node, types)
            yield from _block_faults(graph, node)


def type_faults(graph: Graph, types: Mapping[str, int]) -> Iterator[Fault]:
    """Operators that mix floating-point types: strong typing wants a Cast there."""
    for node in graph.nodes:
        found = {types[name] for name in node.input if types.get(name) in FLOATS}
        if len(found) > 1 and node.op_type not in _NO_CAST:
            names = ", ".join(sorted(TensorProto.DataType.Name(each) for each in found))
            yield Fault("types", _name(node), node.input[0], f"{node.op_type} reads {names}")


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor that ONNX can infer, by its name; without the constants' values."""
    inputs = [*model.graph.input]
    known = {value.name for value in inputs}
    inputs += [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name not in known
    ]
    graph = onnx.helper.make_graph(model.graph.node, "types", inputs, model.graph.output)
    bare = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def quantized_type(graph: Graph, node: onnx.NodeProto) -> int:
    """The type of the levels that a quantizer writes or reads; UNDEFINED where nothing says it."""
    if node.op_type == "DequantizeLinear":
        tensor = graph.initializers.get(node.input[0])
        source = graph.producers.get(node.input[0])
        if tensor is not None:
            return int(tensor.data_type)
        if source is not None and source.op_type == "QuantizeLinear":
            return quantized_type(graph, source)
        return int(TensorProto.UNDEFINED)
    if len(node.input) > 2 and node.input[2]:
        zero_point = graph.constant(node.input[2])
        return 0 if zero_point is None else int(onnx.helper.np_dtype_to_tensor_dtype(zero_point.dtype))
    return int(attribute(node, "output_dtype", 0) or TensorProto.UINT8)


def is_weight(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a quantizer works on a constant: an integer one, or a floating-point one behind a QuantizeLinear."""
    source = graph.producers.get(node.input[0])
    if node.op_type == "DequantizeLinear" and source is not None and source.op_type == "QuantizeLinear":
        return is_weight(graph, source)
    return graph.constant(node.input[0]) is not None


def _type_faults(graph: Graph, node: onnx.NodeProto) -> Iterator[Fault]:
    found = quantized_type(graph, node)
    name = TensorProto.DataType.Name(found)
    if found not in QUANTIZED:
        yield Fault("type", _name(node), node.input[0], f"quantized to {name}")
    elif found in WEIGHT_ONLY and not is_weight(graph, node):
        yield Fault("type", _name(node), node.input[0], f"an activation quantized to {name}, which is for weights")


def _zero_point_faults(graph: Graph, node: onnx.NodeProto) -> Iterator[Fault]:
    if len(node.input) < 3 or not node.input[2]:
        return
    value, scale = graph.constant(node.input[2]), graph.constant(node.input[1])
    if value is None:
        yield Fault("zero-point", _name(node), node.input[2], "its zero point is computed")
    elif value.astype(np.float32).any():
        yield Fault("zero-point", _name(node), node.input[2], f"its zero point is {_first(value)}, not 0")
    elif scale is not None and scale.size != value.size:
        problem = f"{value.size} zero points for {scale.size} scales"
        yield Fault("zero-point", _name(node), node.input[2], problem)


def _scale_faults(graph: Graph, node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[Fault]:
    name = node.input[1]
    value = graph.constant(name)
    if value is None:
        yield Fault("scale-constant", _name(node), name, "its scale is computed")
        return
    numbers = value.astype(np.float64)
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        yield Fault("scale-value", _name(node), name, f"a scale is {numbers[~(numbers > 0)].min(initial=np.inf)}")
    kind = int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
    data = types.get(node.input[0], 0)
    if kind not in FLOATS or (node.op_type == "QuantizeLinear" and data in FLOATS and data != kind):
        shown = [TensorProto.DataType.Name(each) for each in (kind, data)]
        yield Fault("scale-type", _name(node), name, f"the scale is {shown[0]}, the data {shown[1]}")


def _block_faults(graph: Graph, node: onnx.NodeProto) -> Iterator[Fault]:
    """INT4 weights in blocks of 64 or 128 along one of the last two dimensions, and nothing else in blocks."""
    size, four_bits = attribute(node, "block_size", 0), quantized_type(graph, node) in WEIGHT_ONLY
    values, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
    if values is None or scale is None or not (size or four_bits):
        return
    axis = attribute(node, "axis", 1) % max(1, values.ndim)
    blocks = [extent // size if size and place == axis else extent for place, extent in enumerate(values.shape)]
    problem = ""
    if not four_bits:
        problem = "scales by block, which are for INT4 weights"
    elif size not in BLOCKS:
        problem = f"blocks of {size}; allowed: {' and '.join(map(str, BLOCKS))}" if size else "INT4 without blocks"
    elif axis < values.ndim - 2:
        problem = f"blocks along axis {axis} of {values.ndim}; allowed: the last two"
    elif values.shape[axis] % size or list(scale.shape) != blocks:
        problem = f"scales {list(scale.shape)} for {list(values.shape)} in blocks of {size} along axis {axis}"
    if problem:
        yield Fault("block", _name(node), node.input[0], problem)


def _unknown(node: onnx.NodeProto) -> str:
    """Why the parser doesn't know an operator; empty if it does."""
    if node.domain == MICROSOFT:
        return f"{node.op_type} is onnxruntime's own ({MICROSOFT})"
    if not _is_standard(node):
        return f"{node.op_type} of {node.domain} is no ONNX operator"
    if node.op_type in UNSUPPORTED:
        return f"{node.op_type} is not supported"
    if node.op_type == "LayerNormalization" and sum(bool(name) for name in node.output) > 1:
        return "LayerNormalization: only its first output is supported"
    if node.op_type == "Attention":
        past = len([name for name in node.input[4:] if name]) + len([name for name in node.output[1:] if name])
        if past or attribute(node, "softcap", 0.0) or attribute(node, "qk_matmul_output_mode", 0):
            return "Attention: past keys, further outputs and softcap are not supported"
    return ""


def _is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for item in node.attribute:
            for inner in (item.g, *item.graphs):
                yield from _all_nodes(inner)


def _made_by(graph: Graph, name: str) -> str:
    node = graph.producers.get(name)
    return "" if node is None else str(node.op_type)


def _first(value: NDArray[Any]) -> Any:
    flat = value.astype(np.float32).ravel()
    return flat[flat != 0][0]


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])
