"""What OpenVINO's CPU plug-in can't take of a Q/DQ graph."""

from __future__ import annotations

import onnx

from vlm_edge.numerics.qdq_graph import Graph, copied, edited


def float_concatenations(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which a Concat that a linear layer reads has float parts.

    OpenVINO 2026.4 takes the second dimension for channels: with quantized parts it gives every token of
    (batch, tokens, width) a zero point of its own, and then fails to compile the product ("MatMulTransformation
    ... callback has thrown").
    """
    result = copied(model)
    graph = Graph(result)
    for node in graph.nodes:
        readers = {reader.op_type for reader in graph.consumers[node.output[0]]}
        if node.op_type != "Concat" or not readers & {"MatMul", "Gemm"}:
            continue
        for position, name in enumerate(node.input):
            restore = graph.producers.get(name)
            if restore is None or restore.op_type != "DequantizeLinear":
                continue
            quantize = graph.producers.get(restore.input[0])
            if quantize is not None and quantize.op_type == "QuantizeLinear":
                node.input[position] = quantize.input[0]
    return edited(result, {}, {})
