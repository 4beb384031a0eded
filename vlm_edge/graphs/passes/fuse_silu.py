"""Write SiLU as onnxruntime's one kernel for it."""

from __future__ import annotations

import onnx_ir as ir

from vlm_edge.graphs.edit import Editor, done, only_reader
from vlm_edge.graphs.ops import MICROSOFT


class FuseSilu(ir.passes.InPlacePass):
    """``x * Sigmoid(x)`` becomes com.microsoft.QuickGelu with alpha 1 (its definition: ``x * Sigmoid(alpha * x)``).

    onnxruntime finds the pair by itself, but not behind a DequantizeLinear, which it first gives to each reader anew.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model.graph)
        for node in list(model.graph):
            product = only_reader(node.outputs[0], "Mul") if node.op_type == "Sigmoid" else None
            if product is not None and set(product.inputs) == {node.inputs[0], node.outputs[0]}:
                editor.replace(product, "QuickGelu", [node.inputs[0]], domain=MICROSOFT, alpha=1.0)
        return done(model)
