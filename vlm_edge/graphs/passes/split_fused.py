"""Take a product apart whose columns are several layers': queries, keys and values of one attention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vlm_edge.graphs.edit import Editor, constant, done, maker, only_reader, tensor_of
from vlm_edge.graphs.passes.tensorrt_form import integer_nodes


class SplitFused(ir.passes.InPlacePass):
    """Integer products whose columns are read as parts become one product a part, behind a Concat; no number changes.

    NVIDIA's compiler (TensorRT-RTX 1.7.1) computes such a product in floating point when an attention reads the parts,
    and single parts in integers. They are known by their readers: behind the bias and a Reshape, a Transpose that only
    Gathers of its first axis read, as BLIP's vision tower has it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor, changed = Editor(model.graph), False
        for node in sorted(integer_nodes(model.graph), key=lambda each: str(each.outputs[0].name)):
            parts = _parts(node)
            restore = maker(node.inputs[1], "DequantizeLinear") if node.op_type == "MatMul" and parts > 1 else None
            levels = None if restore is None else constant(restore.inputs[0])
            scales = None if restore is None else constant(restore.inputs[1])
            if levels is None or scales is None or levels.ndim != 2 or levels.shape[1] % parts:
                continue
            stem, outputs = str(node.outputs[0].name), []
            columns = np.split(levels, parts, axis=1), np.split(np.broadcast_to(scales, levels.shape[1:]), parts)
            for number, (part, steps) in enumerate(zip(*columns, strict=True)):
                named = f"{stem}_part_{number}"
                inputs = (editor.constant(f"{named}_levels", part), editor.constant(f"{named}_scales", steps))
                weight = editor.op(node, "DequantizeLinear", inputs, f"{named}_weight", axis=1)
                outputs.append(editor.op(node, "MatMul", [node.inputs[0], weight], named))
            editor.replace(node, "Concat", outputs, axis=-1)
            changed = True
        return done(model) if changed else ir.passes.PassResult(model, False)


def _parts(node: ir.Node) -> int:
    """The number of parts that the columns of a product are read as; 1 where they aren't."""
    value = node.outputs[0]
    if (bias := only_reader(value, "Add")) is not None and any(tensor_of(each) is not None for each in bias.inputs):
        value = bias.outputs[0]
    reshape = only_reader(value, "Reshape")
    turned = None if reshape is None else only_reader(reshape.outputs[0], "Transpose")
    readers = () if turned is None else turned.outputs[0].consumers()
    gathered = readers and all(reader.op_type == "Gather" for reader in readers)
    return len(readers) if gathered else 1
