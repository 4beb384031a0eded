"""Make a float graph ready to be quantized: transposed constants folded, every node with a name of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vlm_edge.graphs.edit import attribute, constant, done, shape_of, tensor_of


class FoldTransposedConstants(ir.passes.InPlacePass):
    """Turn the Transpose of a constant into a constant: a weight tied to an embedding is exported as its transpose.

    The transpose of a mapped weight is a view until it is written.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        for node in list(graph):
            if node.op_type != "Transpose" or node.outputs[0].is_graph_output() or tensor_of(node.inputs[0]) is None:
                continue
            value = constant(node.inputs[0])
            assert value is not None
            folded, name = node.outputs[0], node.outputs[0].name
            tensor = ir.tensor(np.transpose(value, attribute(node, "perm")), name=name)
            new = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape_of(tensor)), const_value=tensor
            )
            folded.replace_all_uses_with(new)
            graph.remove(node, safe=True)
            graph.register_initializer(new)
        return done(model)


class NameNodes(ir.passes.InPlacePass):
    """Give every node a name of its own: the old one where it has one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        seen: set[str] = set()
        for position, node in enumerate(model.graph):
            if not node.name or node.name in seen:
                node.name = f"{node.op_type}_{position}_{node.outputs[0].name}"
            seen.add(node.name)
        return ir.passes.PassResult(model, True)
