"""A graph as stored and as onnxruntime runs it: the kind, types and quantizers of each operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vlm_edge.graphs.ops import (
    ATTENTIONS,
    FLOAT_PRODUCTS,
    INTEGER_OPERATORS,
    INTEGER_PRODUCTS,
    PRODUCTS,
    SHAPE_OPERATORS,
)

Kind = Literal[
    "integer", "int8 weights", "float product", "activation Q/DQ", "weight DQ", "conversion", "layout", "other float"
]

INTEGER_ELEMENTWISE = frozenset({"Add", "Mul", "LeakyRelu", "Concat", "AveragePool", "GlobalAveragePool", "Where"})
"""Operators, not products, that onnxruntime runs faster in integers (Sigmoid and Softmax are slower)."""

WEIGHT_ONLY = frozenset({"MatMulNBits", "GatherBlockQuantized"})
"""Operators with integer weights that compute in float; MatMulNBits in integers at an accuracy level of 4."""

MOVES = SHAPE_OPERATORS | {"Concat", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "GatherND"}
_CONVERSIONS = frozenset({"Cast", "ReorderInput", "ReorderOutput"})
_FREE = frozenset({"Shape", "Size", "Identity"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

_OUTPUT_ZERO_POINTS = {
    "QuantizeLinear": 2, "QLinearMatMul": 7, "QLinearConv": 7, "QGemm": 8, "QLinearAdd": 7, "QLinearMul": 7,
    "QLinearSigmoid": 4, "QLinearLeakyRelu": 4, "QLinearSoftmax": 4, "QLinearAveragePool": 4,
    "QLinearGlobalAveragePool": 4, "QLinearConcat": 1, "QLinearWhere": 8,
}  # fmt: skip


class Graph:
    """A model's main graph, indexed. The index is that of the moment: build another one after an edit."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.producers.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.consumers[name].append(node)

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of an initializer or of a Constant node, or None where ``name`` is computed."""
        tensor = self.initializers.get(name)
        node = self.producers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
        if tensor is None:
            return None
        value: NDArray[Any] = numpy_helper.to_array(tensor)
        return value


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, or ``default``."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


@dataclass(frozen=True)
class Int8Speed:
    """Times of one matrix product in float32, u8 x u8 and s8 x s8, relative to u8 x s8.

    The defaults were measured on a Zen 4 core with AVX512-VNNI and onnxruntime 1.31 (64 x 512 x 512, one thread).
    """

    float_over_u8s8: float = 3.0
    u8u8_over_u8s8: float = 1.85
    s8s8_over_u8s8: float = 16.0
    measured: bool = False


@dataclass(frozen=True)
class Int8View:
    """The input of the detectors of :mod:`vlm_edge.explain.causes`.

    Args:
        source: the graph as it is in the file.
        graph: the graph as onnxruntime runs it.
        machine: the host's kind of CPU.
        isa: instruction sets of the host, as Linux names them.
        speed: of the host's integer kernels.
        read: the value of an initializer of ``source``, None where there is none of that name.
        equal_weights: names of initializers of ``source`` with the same type, shape and bytes, and those bytes.
        chosen: `vlm-edge quantize` and `vlm-edge compile` chose the form of each layer (scheme ``int8``): a layer that
            is dynamic or in float was faster so, or too noisy in INT8.
    """

    source: Graph
    graph: Graph
    machine: Literal["x86", "arm", "other"]
    isa: frozenset[str]
    speed: Int8Speed
    read: Callable[[str], NDArray[Any] | None]
    equal_weights: tuple[tuple[tuple[str, ...], int], ...] = ()
    chosen: bool = False

    @property
    def has_vnni(self) -> bool:
        """Whether u8 x s8 is summed up in 32 bits; without it x86 saturates pairs of products at 16 bits."""
        return bool(self.isa & {"avx512_vnni", "avx_vnni", "amx_int8"})

    @property
    def slow_signed(self) -> bool:
        """Whether products of s8 data run on a slow kernel: on x86, unless it was measured to be fast."""
        return self.machine == "x86" and (not self.speed.measured or self.speed.s8s8_over_u8s8 > 2)

    @cached_property
    def source_signed(self) -> bool:
        """Whether the file quantizes some activation to s8."""
        return any(
            node.op_type == "QuantizeLinear" and _dtype(self.source, node.output[0]) == np.int8
            for node in self.source.nodes
        )

    def is_constant(self, name: str) -> bool:
        producer = self.graph.producers.get(name)
        return name in self.graph.initializers or (producer is not None and producer.op_type == "Constant")

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """The integer type of a quantized tensor of ``graph``; None if unknown."""
        return _dtype(self.graph, name)

    def small(self, name: str) -> NDArray[Any] | None:
        """The value of a constant in the graph itself; None for one in a file beside it."""
        tensor = self.graph.initializers.get(name)
        if tensor is not None and tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return self.graph.constant(name)

    def constant_size(self, name: str) -> int:
        """Elements of a constant; 1 where there is none of that name."""
        tensor = self.graph.initializers.get(name)
        return int(np.prod(tensor.dims)) if tensor is not None else 1

    def dequantizer(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that ``name`` comes from, directly or through operators that only move elements."""
        node = self.graph.producers.get(name)
        while node is not None and node.op_type in SHAPE_OPERATORS:
            node = self.graph.producers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def of_weight(self, node: onnx.NodeProto) -> bool:
        """Whether a DequantizeLinear restores a constant."""
        return self.is_constant(node.input[0])

    def data_dequantizer(self, name: str) -> onnx.NodeProto | None:
        found = self.dequantizer(name)
        return found if found is not None and not self.of_weight(found) else None

    def weight_dequantizer(self, name: str) -> onnx.NodeProto | None:
        found = self.dequantizer(name)
        return found if found is not None and self.of_weight(found) else None

    def restores_convolution(self, node: onnx.NodeProto) -> bool:
        """Whether a DequantizeLinear follows a QLinearConv, which has no float output, for a float operator."""
        if node.op_type != "DequantizeLinear":
            return False
        above = self.graph.producers.get(node.input[0])
        while above is not None and (above.op_type in MOVES or above.op_type in _QUANTIZERS):
            above = self.graph.producers.get(above.input[0])
        if above is None or above.op_type != "QLinearConv":
            return False
        readers = list(self.readers(node.output[0]))
        return not readers or any(reader.op_type != "QuantizeLinear" for reader in readers)

    def leftover_chain(self, name: str) -> Iterator[onnx.NodeProto]:
        """Q/DQ above ``name`` that an integer kernel would not need, up to the quantizer of the float values.

        The DequantizeLinear of a QLinearConv's output is not among them.
        """
        node = self.graph.producers.get(name)
        while node is not None and (node.op_type in SHAPE_OPERATORS or node.op_type in _QUANTIZERS):
            above = self.graph.producers.get(node.input[0])
            if node.op_type == "QuantizeLinear" and self.dequantizer(node.input[0]) is None:
                return
            if node.op_type in _QUANTIZERS and not self.restores_convolution(node):
                yield node
            node = above

    def readers(self, name: str) -> Iterator[onnx.NodeProto]:
        """Readers of ``name``, directly or through operators that only move elements."""
        for reader in self.graph.consumers[name]:
            if reader.op_type in SHAPE_OPERATORS:
                for output in reader.output:
                    yield from self.readers(output)
            else:
                yield reader

    def data_dtype(self, node: onnx.NodeProto) -> np.dtype[Any] | None:
        """The type of the first operand of an integer product."""
        return self.dtype(node.input[0])

    def weight_of(self, node: onnx.NodeProto) -> tuple[str, str] | None:
        """Names of the constant weight and its zero point ("" if none) of an integer product."""
        product = PRODUCTS.get(node.op_type)
        if product is None or not product.integer or node.op_type in WEIGHT_ONLY:
            return None
        weight, zero_point = product.weight, product.zero_point
        if weight is None or zero_point is None or not self.is_constant(node.input[weight]):
            return None
        return node.input[weight], node.input[zero_point] if len(node.input) > zero_point else ""

    def kind(self, node: onnx.NodeProto) -> Kind:
        """The kind of a node of ``graph``, by which the report adds up times."""
        if node.op_type in WEIGHT_ONLY and attribute(node, "accuracy_level", 0) != INTEGER_PRODUCTS:
            return "int8 weights"
        if node.op_type in INTEGER_OPERATORS or node.op_type.startswith("QLinear"):
            return "integer"
        if node.op_type in FLOAT_PRODUCTS or node.op_type in ATTENTIONS:
            return "float product"
        if node.op_type == "DequantizeLinear" and self.of_weight(node):
            return "weight DQ"
        if node.op_type in _QUANTIZERS:
            return "activation Q/DQ"
        if node.op_type in _CONVERSIONS:
            return "conversion"
        return "layout" if node.op_type in MOVES or node.op_type in _FREE else "other float"

    def is_float_only(self, node: onnx.NodeProto) -> bool:
        """Whether onnxruntime has no integer kernel for the node that is faster than the float one."""
        known = FLOAT_PRODUCTS | ATTENTIONS | INTEGER_ELEMENTWISE | MOVES | _QUANTIZERS | _CONVERSIONS | _FREE
        return node.op_type not in known and self.kind(node) == "other float" and not _keeps_quantized(node)


@dataclass(frozen=True)
class Hit:
    """A node that a cause makes slower.

    recovers: the share of the node's time that the remedy is estimated to save.
    reason: a few words on this node; equal reasons are counted.
    """

    node: onnx.NodeProto
    recovers: float = 1.0
    reason: str = ""


def _keeps_quantized(node: onnx.NodeProto) -> bool:
    """Whether an operator works on quantized values as they are, or is folded into a quantizer's range."""
    return node.op_type in ("MaxPool", "Relu", "Clip", "Resize", "ArgMax")


def _dtype(graph: Graph, name: str) -> np.dtype[Any] | None:
    """Integer type of a quantized tensor."""
    tensor = graph.initializers.get(name)
    if tensor is not None:
        return _numpy_type(tensor.data_type)
    node = graph.producers.get(name)
    if node is None:
        given = (value.type.tensor_type.elem_type for value in graph.model.graph.input if value.name == name)
        code = next(given, 0)
        return _numpy_type(code) if code else None
    if node.op_type == "DynamicQuantizeLinear":
        return np.dtype(np.uint8)
    place = _OUTPUT_ZERO_POINTS.get(node.op_type)
    if place is not None and len(node.input) > place and node.input[place]:
        return _dtype(graph, node.input[place])
    if node.op_type == "QuantizeLinear":
        code = attribute(node, "output_dtype", 0)
        return _numpy_type(code or onnx.TensorProto.UINT8)
    if node.op_type in MOVES or node.op_type == "MaxPool":
        return _dtype(graph, node.input[0])
    return None


def _numpy_type(code: int) -> np.dtype[Any]:
    found: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    return found
