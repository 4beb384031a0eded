"""Checks of where Q/DQ pairs stand in a graph, as TensorRT's "Q/DQ Layer-Placement Recommendations" want them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from vlm_edge.numerics.qdq_graph import SHAPE_OPERATORS, Graph, attribute
from vlm_edge.numerics.qdq_retarget import HEAVY_OPERATORS, is_integer, quantizer_above
from vlm_edge.numerics.tensorrt_form import (
    attention_products,
    from_integer,
    integer_nodes,
    is_computed,
    is_quantized,
    skip_branch,
    weight_axis,
)
from vlm_edge.numerics.tensorrt_parameters import WEIGHT_ONLY, Fault, is_weight, quantized_type

_ACTIVATIONS = (
    "BatchNormalization Celu Clip Elu Erf Gelu HardSigmoid HardSwish LeakyRelu Mish PRelu Relu Selu Sigmoid Softplus "
    "Softsign Swish Tanh ThresholdedRelu"
)
ACTIVATIONS = frozenset(_ACTIVATIONS.split())
"""What TensorRT fuses with the weighted layer before it."""

QUANTIZABLE = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Resize"})
"""Operators without weights that run in 8 bits when their output is quantized as well as their inputs."""


def placement_faults(graph: Graph) -> Iterator[Fault]:
    """Every pair, in the graph's order."""
    integer = integer_nodes(graph)
    halves = {graph.position(product) for pair in attention_products(graph) for product in _half(graph, *pair)}
    for position, node in enumerate(graph.nodes):
        yield from _pair_faults(graph, node)
        yield from _granularity_faults(graph, node)
        if node.op_type in HEAVY_OPERATORS:
            yield from _factor_faults(graph, node)
            yield from _axis_faults(graph, node)
        if position in halves:
            problem = "it runs in integers, and the attention's other product does not"
            yield Fault("attention", _name(node), node.output[0], problem)
        yield from _output_faults(graph, node, integer)
        yield from _bias_faults(graph, node)
        yield from _residual_faults(graph, node, integer)
        yield from _stray_faults(graph, node)


def _half(graph: Graph, *products: onnx.NodeProto) -> list[onnx.NodeProto]:
    integer = [node for node in products if is_integer(graph, node)]
    return integer if len(integer) == 1 else []


def _pair_faults(graph: Graph, node: onnx.NodeProto) -> Iterator[Fault]:
    """QuantizeLinear is read by DequantizeLinear alone, which restores with the same scale, or restores a constant."""
    if node.op_type == "QuantizeLinear":
        readers = graph.consumers[node.output[0]]
        others = sorted({reader.op_type for reader in readers if reader.op_type != "DequantizeLinear"})
        if others or not readers or node.output[0] in graph.outputs:
            reason = ", ".join(others) or "an output of the graph"
            yield Fault(
                "pair", _name(node), node.output[0], f"its levels go to {reason}, not to DequantizeLinear alone"
            )
    elif node.op_type == "DequantizeLinear" and graph.constant(node.input[0]) is None:
        source = graph.producers.get(node.input[0])
        if source is None or source.op_type != "QuantizeLinear":
            yield Fault("pair", _name(node), node.input[0], "it restores levels that no QuantizeLinear makes")
            return
        scale, other = graph.constant(node.input[1]), graph.constant(source.input[1])
        if scale is not None and other is not None and not np.array_equal(scale, other):
            yield Fault("pair", _name(node), node.input[1], f"its scale is not that of {_name(source)}")


def _granularity_faults(graph: Graph, node: onnx.NodeProto) -> Iterator[Fault]:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    scale = graph.constant(node.input[1])
    if scale is None or scale.size == 1:
        return
    if not is_weight(graph, node):
        yield Fault("granularity", _name(node), node.input[1], f"an activation with {scale.size} scales")
    elif node.op_type == "DequantizeLinear":
        for reader in graph.consumers[node.output[0]]:
            if reader.op_type not in HEAVY_OPERATORS:
                problem = f"{scale.size} scales for {reader.op_type}, which has no weights"
                yield Fault("granularity", _name(node), node.input[1], problem)


def _factor_faults(graph: Graph, node: onnx.NodeProto) -> Iterator[Fault]:
    found = [quantizer_above(graph, name) is not None and not _is_weight_only(graph, name) for name in node.input[:2]]
    if len(set(found)) == 2:
        name = node.input[found.index(False)]
        yield Fault("inputs", _name(node), name, f"{node.op_type}: {name} is not quantized, the other factor is")


def _is_weight_only(graph: Graph, name: str) -> bool:
    """Whether ``name`` is a weight of 4 bits, whose layer computes in floating point ("Weight-Only Quantization")."""
    node = graph.producers.get(name)
    return node is not None and node.op_type == "DequantizeLinear" and quantized_type(graph, node) in WEIGHT_ONLY


def _axis_faults(graph: Graph, node: onnx.NodeProto) -> Iterator[Fault]:
    for index, name in enumerate(node.input[:2]):
        restored = graph.producers.get(name)
        if restored is None or restored.op_type != "DequantizeLinear" or not is_weight(graph, restored):
            continue
        source = graph.producers.get(restored.input[0])
        values = graph.constant(restored.input[0] if source is None else source.input[0])
        scale = graph.constant(restored.input[1])
        if values is None or scale is None or scale.size == 1 or attribute(restored, "block_size", 0):
            continue
        axis, wanted = attribute(restored, "axis", 1) % values.ndim, weight_axis(node, index, values.ndim)
        if axis != wanted or values.shape[wanted] != scale.size:
            problem = (
                f"{scale.size} scales along axis {axis} of {list(values.shape)}; output channels are axis {wanted}"
            )
            yield Fault("axis", _name(restored), restored.input[0], f"{node.op_type} {_name(node)}: {problem}")


def _output_faults(graph: Graph, node: onnx.NodeProto, integer: set[int]) -> Iterator[Fault]:
    """A pair between a weighted operator (and its bias) and its activation, or the addition of a skip branch."""
    if node.op_type != "DequantizeLinear" or is_weight(graph, node) or not from_integer(graph, node.output[0], integer):
        return
    for reader in graph.consumers[node.output[0]]:
        if reader.op_type in ACTIVATIONS:
            yield Fault("output", _name(node), node.output[0], f"between a weighted operator and its {reader.op_type}")
        elif reader.op_type == "Add" and all(is_computed(graph, name) for name in reader.input):
            others = [name for name in reader.input if name != node.output[0]]
            if not any(from_integer(graph, name, integer) for name in others):
                yield Fault("output", _name(node), node.output[0], f"between a weighted operator and {_name(reader)}")


def _bias_faults(graph: Graph, node: onnx.NodeProto) -> Iterator[Fault]:
    names = list(node.input[2:]) if node.op_type in HEAVY_OPERATORS else []
    if node.op_type == "Add" and any(_is_product(graph, name) for name in node.input):
        names = [name for name in node.input if not is_computed(graph, name)]
    for name in names:
        source = graph.producers.get(name)
        if source is not None and source.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield Fault("bias", _name(node), name, "its bias is quantized")


def _residual_faults(graph: Graph, node: onnx.NodeProto, integer: set[int]) -> Iterator[Fault]:
    skip = skip_branch(graph, node, integer)
    if skip is None:
        return
    branches = [index for index, name in enumerate(node.input) if quantizer_above(graph, name) is not None]
    both = all(from_integer(graph, name, integer) for name in node.input)
    if skip not in branches and not (both and branches):
        yield Fault("residual", _name(node), node.input[skip], "its sum is quantized, its skip branch is not")


def _stray_faults(graph: Graph, node: onnx.NodeProto) -> Iterator[Fault]:
    if node.op_type == "DequantizeLinear" and not is_weight(graph, node) and not _is_used(graph, node.output[0]):
        readers = ", ".join(sorted({reader.op_type for reader in graph.consumers[node.output[0]]})) or "the output"
        yield Fault("stray", _name(node), node.output[0], f"only {readers} reads this pair, in floating point")


def _is_used(graph: Graph, name: str) -> bool:
    """Whether something that can run in 8 bits reads ``name``, directly or below operators that move elements."""
    for reader in graph.consumers[name]:
        if reader.op_type in HEAVY_OPERATORS or reader.op_type == "Attention":
            return True
        if reader.op_type in QUANTIZABLE and is_quantized(graph, reader.output[0]):
            return True
        moves = reader.op_type in SHAPE_OPERATORS or reader.op_type == "Concat"
        if moves and any(_is_used(graph, output) for output in reader.output):
            return True
    return False


def _is_product(graph: Graph, name: str) -> bool:
    node = graph.producers.get(name)
    return node is not None and node.op_type in HEAVY_OPERATORS


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])
