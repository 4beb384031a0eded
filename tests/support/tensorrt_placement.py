"""NVIDIA's recommended places of Q/DQ pairs, as an independent check of TensorRT's form of a graph.

They are taken from "Working with Quantized Types" and "Explicit Quantization: Q/DQ Layer-Placement Recommendations" of
the TensorRT documentation (10.11 to 11.0). The compiler builds graphs that ignore them: what it makes of each is in
tests/backends/tensorrt/test_placement.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vlm_edge.backends.tensorrt.rules import is_weight
from vlm_edge.graphs.edit import attribute, constant, maker, name_of, tensor_of
from vlm_edge.graphs.match import is_integer, quantizer_above
from vlm_edge.graphs.ops import HEAVY_OPERATORS, SHAPE_OPERATORS
from vlm_edge.graphs.passes.tensorrt_form import (
    attention_products,
    factor_axis,
    from_integer,
    integer_nodes,
    is_computed,
    is_quantized,
    skip_branch,
)

_ACTIVATIONS = (
    "BatchNormalization Celu Clip Elu Erf Gelu HardSigmoid HardSwish LeakyRelu Mish PRelu Relu Selu Sigmoid Softplus "
    "Softsign Swish Tanh ThresholdedRelu"
)
ACTIVATIONS = frozenset(_ACTIVATIONS.split())
"""Operators that TensorRT fuses with the weighted layer before them."""

QUANTIZABLE = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Resize"})
"""Operators without weights that run in 8 bits when their output is quantized as well as their inputs."""


class Fault(NamedTuple):
    """A recommendation that isn't followed, where, and how."""

    rule: str
    node: str
    tensor: str
    problem: str


def placement_faults(graph: ir.Graph) -> Iterator[Fault]:
    """Every pair that stands elsewhere than recommended, in the graph's order."""
    integer = integer_nodes(graph)
    halves = {product for pair in attention_products(graph) for product in _half(*pair)}
    for node in graph:
        yield from _pair_faults(node)
        yield from _granularity_faults(node)
        if node.op_type in HEAVY_OPERATORS:
            yield from _factor_faults(node)
            yield from _axis_faults(node)
        if node in halves:
            problem = "it runs in integers, and the attention's other product does not"
            yield Fault("attention", name_of(node), str(node.outputs[0].name), problem)
        yield from _output_faults(node, integer)
        yield from _bias_faults(node)
        yield from _residual_faults(node, integer)
        yield from _stray_faults(node)


def _half(*products: ir.Node) -> list[ir.Node]:
    integer = [node for node in products if is_integer(node)]
    return integer if len(integer) == 1 else []


def _pair_faults(node: ir.Node) -> Iterator[Fault]:
    """QuantizeLinear is read by DequantizeLinear alone, which restores with the same scale, or restores a constant."""
    if node.op_type == "QuantizeLinear":
        output = node.outputs[0]
        readers = output.consumers()
        others = sorted({reader.op_type for reader in readers if reader.op_type != "DequantizeLinear"})
        if others or not readers or output.is_graph_output():
            reason = ", ".join(others) or "an output of the graph"
            problem = f"what it writes goes to {reason}, not to DequantizeLinear alone"
            yield Fault("pair", name_of(node), str(output.name), problem)
    elif node.op_type == "DequantizeLinear" and tensor_of(node.inputs[0]) is None:
        source = maker(node.inputs[0], "QuantizeLinear")
        if source is None:
            problem = "it restores what no QuantizeLinear writes"
            yield Fault("pair", name_of(node), _name(node.inputs[0]), problem)
            return
        scale, other = constant(node.inputs[1]), constant(source.inputs[1])
        if scale is not None and other is not None and not np.array_equal(scale, other):
            yield Fault("pair", name_of(node), _name(node.inputs[1]), f"its scale is not that of {name_of(source)}")


def _granularity_faults(node: ir.Node) -> Iterator[Fault]:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    scale = tensor_of(node.inputs[1])
    if scale is None or scale.size == 1:
        return
    name = _name(node.inputs[1])
    if not is_weight(node):
        yield Fault("granularity", name_of(node), name, f"an activation with {scale.size} scales")
    elif node.op_type == "DequantizeLinear":
        for reader in node.outputs[0].consumers():
            if reader.op_type not in HEAVY_OPERATORS:
                problem = f"{scale.size} scales for {reader.op_type}, which has no weights"
                yield Fault("granularity", name_of(node), name, problem)


def _factor_faults(node: ir.Node) -> Iterator[Fault]:
    found = [quantizer_above(value) is not None and not _is_weight_only(value) for value in node.inputs[:2]]
    if len(set(found)) == 2:
        name = _name(node.inputs[found.index(False)])
        problem = f"{node.op_type}: {name} is not quantized, the other factor is"
        yield Fault("inputs", name_of(node), name, problem)


def _is_weight_only(value: ir.Value | None) -> bool:
    """Whether ``value`` is a weight of 4 bits, whose layer computes in floating point ("Weight-Only Quantization")."""
    node = maker(value, "DequantizeLinear")
    levels = None if node is None else tensor_of(node.inputs[0])
    return levels is not None and levels.dtype == ir.DataType.INT4


def _axis_faults(node: ir.Node) -> Iterator[Fault]:
    for index, value in enumerate(node.inputs[:2]):
        restored = maker(value, "DequantizeLinear")
        if restored is None or not is_weight(restored):
            continue
        source = maker(restored.inputs[0])
        numbers, scale = tensor_of(restored.inputs[0] if source is None else source.inputs[0]), restored.inputs[1]
        scales = tensor_of(scale)
        if numbers is None or scales is None or scales.size == 1 or attribute(restored, "block_size", 0):
            continue
        shape = numbers.shape.numpy()
        axis, wanted = attribute(restored, "axis", 1) % len(shape), factor_axis(node, index, len(shape))
        if axis != wanted or shape[wanted] != scales.size:
            problem = f"{scales.size} scales along axis {axis} of {list(shape)}; output channels are axis {wanted}"
            where = f"{node.op_type} {name_of(node)}"
            yield Fault("axis", name_of(restored), _name(restored.inputs[0]), f"{where}: {problem}")


def _output_faults(node: ir.Node, integer: set[ir.Node]) -> Iterator[Fault]:
    """A pair between a weighted operator (and its bias) and its activation, or the addition of a skip branch."""
    if node.op_type != "DequantizeLinear" or is_weight(node) or not from_integer(node.outputs[0], integer):
        return
    output, name = node.outputs[0], str(node.outputs[0].name)
    for reader in output.consumers():
        if reader.op_type in ACTIVATIONS:
            yield Fault("output", name_of(node), name, f"between a weighted operator and its {reader.op_type}")
        elif (
            reader.op_type == "Add"
            and all(is_computed(value) for value in reader.inputs)
            and not any(from_integer(value, integer) for value in reader.inputs if value is not output)
        ):
            yield Fault("output", name_of(node), name, f"between a weighted operator and {name_of(reader)}")


def _bias_faults(node: ir.Node) -> Iterator[Fault]:
    values = list(node.inputs[2:]) if node.op_type in HEAVY_OPERATORS else []
    if node.op_type == "Add" and any(maker(value, *HEAVY_OPERATORS) for value in node.inputs):
        values = [value for value in node.inputs if not is_computed(value)]
    for value in values:
        if maker(value, "QuantizeLinear", "DequantizeLinear") is not None:
            yield Fault("bias", name_of(node), _name(value), "its bias is quantized")


def _residual_faults(node: ir.Node, integer: set[ir.Node]) -> Iterator[Fault]:
    skip = skip_branch(node, integer)
    if skip is None:
        return
    branches = [index for index, value in enumerate(node.inputs) if quantizer_above(value) is not None]
    both = all(from_integer(value, integer) for value in node.inputs)
    if skip not in branches and not (both and branches):
        yield Fault("residual", name_of(node), _name(node.inputs[skip]), "its sum is quantized, its skip branch is not")


def _stray_faults(node: ir.Node) -> Iterator[Fault]:
    if node.op_type == "DequantizeLinear" and not is_weight(node) and not _is_used(node.outputs[0]):
        readers = ", ".join(sorted({reader.op_type for reader in node.outputs[0].consumers()})) or "the output"
        problem = f"only {readers} reads this pair, in floating point"
        yield Fault("stray", name_of(node), str(node.outputs[0].name), problem)


def _is_used(value: ir.Value) -> bool:
    """Whether something that can run in 8 bits reads ``value``, directly or below operators that move elements."""
    for reader in value.consumers():
        if reader.op_type in HEAVY_OPERATORS or reader.op_type == "Attention":
            return True
        if reader.op_type in QUANTIZABLE and is_quantized(reader.outputs[0]):
            return True
        moves = reader.op_type in SHAPE_OPERATORS or reader.op_type == "Concat"
        if moves and any(_is_used(output) for output in reader.outputs):
            return True
    return False


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)
