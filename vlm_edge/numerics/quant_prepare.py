"""What is done to a float graph before it is quantized, and to the factors that SmoothQuant leaves in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vlm_edge.numerics.qdq_graph import Graph, attribute, copied, edited


def fold_transposed_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Transpose of a constant as a constant: a weight that is tied to an embedding is exported as its transpose."""
    graph = Graph(model)
    removed: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    for position, node in enumerate(graph.nodes):
        value = graph.constant(node.input[0]) if node.op_type == "Transpose" else None
        if value is None or node.output[0] in graph.outputs:
            continue
        removed[position] = []
        constants[node.output[0]] = np.ascontiguousarray(np.transpose(value, attribute(node, "perm")))
    return edited(model, removed, constants)


def with_node_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own: the old one where it had one."""
    result = copied(model)
    seen: set[str] = set()
    for position, node in enumerate(result.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{position}_{node.output[0]}"
        seen.add(node.name)
    return result


def fold_smoothing(model: onnx.ModelProto) -> onnx.ModelProto:
    """SmoothQuant's factors inside the LayerNormalization before them, where nothing else reads its output.

    ``factor * (gamma * x + beta) = (factor * gamma) * x + factor * beta`` (Xiao et al. 2022, arXiv:2211.10438,
    section 4: the smoothing is fused into the previous layer). Multiplications elsewhere stay.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    renamed: dict[str, str] = {}
    for position, node in enumerate(graph.nodes):
        if node.op_type != "LayerNormalization" or node.output[0] in graph.outputs:
            continue
        readers = graph.consumers[node.output[0]]
        factor = _shared_factor(graph, node.output[0], readers)
        gamma = graph.constant(node.input[1])
        beta = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1, np.float32)
        if factor is None or gamma is None or beta is None or gamma.shape != factor.shape:
            continue
        names = f"{node.output[0]}_gamma", f"{node.output[0]}_beta"
        constants |= {names[0]: gamma * factor, names[1]: np.broadcast_to(beta, gamma.shape) * factor}
        smoothed = onnx.NodeProto()
        smoothed.CopyFrom(node)
        smoothed.input[:] = [node.input[0], *names]
        replacements[position] = [smoothed]
        for reader in readers:
            replacements[graph.position(reader)] = []
            renamed[reader.output[0]] = node.output[0]
    return edited(model, replacements, constants, renamed=renamed)


def _shared_factor(graph: Graph, name: str, readers: list[onnx.NodeProto]) -> NDArray[Any] | None:
    """The one constant vector that every reader of ``name`` multiplies it by, or None."""
    factor: NDArray[Any] | None = None
    for reader in readers:
        if reader.op_type != "Mul" or reader.output[0] in graph.outputs:
            return None
        other = reader.input[1] if reader.input[0] == name else reader.input[0]
        value = graph.constant(other)
        if value is None or not value.shape or value.size != value.shape[-1]:
            return None
        vector = value.reshape(-1)
        if factor is not None and not np.array_equal(factor, vector):
            return None
        factor = vector
    return factor
