"""SiLU as onnxruntime's one kernel for it."""

from __future__ import annotations

import onnx
from onnx import helper

from vlm_edge.numerics.qdq_graph import MICROSOFT, Graph, edited


def fuse_silu(model: onnx.ModelProto) -> onnx.ModelProto:
    """``x * Sigmoid(x)`` as com.microsoft.QuickGelu with alpha 1 (its definition: ``x * Sigmoid(alpha * x)``).

    onnxruntime finds the pair by itself, but not behind a DequantizeLinear, which it first gives to each reader anew.
    """
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        product = graph.only_consumer(node.output[0], "Mul") if node.op_type == "Sigmoid" else None
        if product is None or sorted(product.input) != sorted((node.input[0], node.output[0])):
            continue
        replacements[graph.position(node)] = []
        replacements[graph.position(product)] = [
            helper.make_node(
                "QuickGelu", [node.input[0]], [product.output[0]], name=product.name, domain=MICROSOFT, alpha=1.0
            )
        ]
    return edited(model, replacements, {})
