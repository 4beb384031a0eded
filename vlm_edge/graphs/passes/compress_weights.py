"""Store weights of floating-point operators in 16, 8 or 4 bits: small on disk, decompressed when a session is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.errors import VlmEdgeError
from vlm_edge.graphs.edit import Editor, attribute, constant, done
from vlm_edge.graphs.match import find_linears
from vlm_edge.graphs.ops import MICROSOFT, weight_axis
from vlm_edge.graphs.passes.half_precision import FLOAT
from vlm_edge.graphs.passes.lower_linears import SMALLEST
from vlm_edge.quantizers.affine import quantize_rows, quantize_weight
from vlm_edge.quantizers.blocks import quantize_symmetric_blocks

Decompression = Literal["cast", "dequantize"]
"""``cast``: Cast and Mul, which onnxruntime folds into a constant when it loads the graph and OpenVINO takes for a
compressed weight. ``dequantize``: DequantizeLinear, which TensorRT reads."""


@dataclass
class CompressWeights(ir.passes.InPlacePass):
    """Float32 weights of MatMul, Gemm, Conv and ConvTranspose become int8 with a scale for each output channel.

    The operators stay as they are and read a tensor of the same name, so it makes no difference how many share it.
    Every element moves by half a step at most. Weights below :data:`SMALLEST` elements are left alone, and those of
    the nodes named in ``left_out``.
    """

    decompression: Decompression
    left_out: frozenset[str] = frozenset()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor, first = Editor(model.graph), model.graph[0]
        for node in list(model.graph):
            axis = weight_axis(node.op_type, transposed=bool(attribute(node, "transB", 0)))
            if axis is None or node.name in self.left_out or not _is_large(node.inputs[1]):
                continue
            value = node.inputs[1]
            weight = constant(value)
            assert value is not None
            assert weight is not None
            levels, scales = quantize_weight(weight, axis)
            restored = _decompressed(
                editor, first, str(value.name), levels, scales, axis % weight.ndim, self.decompression
            )
            editor.take_over(value, restored)
        return done(model)


def _is_large(value: ir.Value | None, smallest: int = SMALLEST) -> bool:
    """Whether it is a float32 initializer of at least ``smallest`` elements."""
    tensor = value.const_value if value is not None and value.is_initializer() else None
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size >= smallest


@dataclass
class CompressBlocks(ir.passes.InPlacePass):
    """Float32 weights of linear layers become int4, with DequantizeLinear and a scale for each block of inputs.

    TensorRT's form (operator set 21). Weights whose inputs are no multiple of ``block_size`` are left alone, those
    below :data:`SMALLEST` elements, and those of the nodes named in ``left_out``.

    Raises:
        VlmEdgeError: the graph is of an operator set that can't be read as number 21.
    """

    block_size: int
    left_out: frozenset[str] = frozenset()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor, first = Editor(model.graph), model.graph[0]
        int4 = ir.DataType.INT4.numpy()
        for linear in find_linears(model.graph):
            value, axis = linear.weight, int(linear.transposed)
            weight = linear.weight_by_input() if _is_large(value) else None
            if weight is None or linear.node.name in self.left_out or weight.shape[0] % self.block_size:
                continue
            _raise_to_operator_set_21(model)
            levels, scales = quantize_symmetric_blocks(weight, self.block_size)
            inputs = [
                editor.constant(f"{value.name}_{part}", np.ascontiguousarray(array.T if axis else array))
                for part, array in (("levels", levels.astype(int4)), ("scales", scales))
            ]
            settings: dict[str, Any] = {"axis": axis, "block_size": self.block_size}
            restored = editor.op(
                first, "DequantizeLinear", inputs, f"{value.name}_restored", name=f"{value.name}_restore", **settings
            )
            editor.take_over(value, restored)
        return done(model)


def _raise_to_operator_set_21(model: ir.Model) -> None:
    """The first with 4-bit types. It differs from number 20 in the types that operators take, and GroupNormalization
    (onnx, docs/Changelog.md)."""
    imports = model.graph.opset_imports
    if imports[""] == 20 and all(node.op_type != "GroupNormalization" for node in model.graph):
        imports[""] = 21
    if imports[""] < 21:
        raise VlmEdgeError(
            f"quantize: 4-bit constants need operator set 21; this graph is of {imports['']}, and can't be raised",
            "export with `opset: 20` or a later one",
        )
    model.ir_version = max(model.ir_version, 10)


@dataclass
class CompressTables(ir.passes.InPlacePass):
    """Float32 tables that Gather reads rows of (embeddings) become int8 with a scale for each row.

    A table is a constant (rows, columns) of at least :data:`SMALLEST` elements, gathered along axis 0.

    Args:
        decompression: None for com.microsoft.GatherBlockQuantized, which dequantizes no more than the rows it reads;
            else the whole table is decompressed, and whoever reads it goes on reading it by its name.
    """

    decompression: Decompression | None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor, first = Editor(model.graph), model.graph[0]
        rows: dict[ir.Value, tuple[ir.Value, ir.Value, int]] = {}
        for node in list(model.graph):
            value = node.inputs[0] if node.op_type == "Gather" and attribute(node, "axis", 0) == 0 else None
            table = constant(value) if _is_large(value) else None
            if value is None or table is None or table.ndim != 2:
                continue
            if self.decompression is not None:
                levels, scales = quantize_weight(table, 0)
                name = str(value.name)
                editor.take_over(value, _decompressed(editor, first, name, levels, scales, 0, self.decompression))
                continue
            if value not in rows:
                block = max(16, 1 << (table.shape[1] - 1).bit_length())
                bytes_of, row_scales = quantize_rows(table, block)
                parts = (("row_levels", bytes_of), ("row_scales", row_scales))
                made = [editor.constant(f"{value.name}_{part}", array) for part, array in parts]
                rows[value] = made[0], made[1], block
            levels_of, scales_of, block = rows[value]
            settings: dict[str, Any] = {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
            inputs = [levels_of, node.inputs[1], scales_of]
            editor.replace(node, "GatherBlockQuantized", inputs, domain=MICROSOFT, **settings)
        return done(model)


@dataclass
class StoreHalf(ir.passes.InPlacePass):
    """Float32 constants are stored as float16, with a Cast back, which engines fold or read as a compressed weight.

    Constants below ``smallest`` elements are left alone, those that float16 has no number for, and those of the nodes
    named in ``left_out``.
    """

    left_out: frozenset[str] = frozenset()
    smallest: int = SMALLEST

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor, first = Editor(model.graph), model.graph[0]
        for value in list(model.graph.initializers.values()):
            numbers = constant(value) if _is_large(value, self.smallest) else None
            if numbers is None or any(node.name in self.left_out for node in value.consumers()):
                continue
            with np.errstate(over="ignore"):
                stored = numbers.astype(np.float16)
            if np.isfinite(stored).all():
                name = str(value.name)
                half = editor.constant(f"{name}_float16", stored)
                cast = editor.op(first, "Cast", [half], f"{name}_float32", name=f"{name}_to_float", to=int(FLOAT))
                editor.take_over(value, cast)
        return done(model)


def _decompressed(
    editor: Editor,
    before: ir.Node,
    name: str,
    levels: NDArray[Any],
    scales: NDArray[np.float32],
    axis: int,
    decompression: Decompression,
) -> ir.Value:
    """Add the nodes that make a float32 tensor of int8 values with a scale for each slice along ``axis``."""
    if decompression == "cast":
        return cast_weight(editor, before, name, levels, scales, axis)
    inputs = [editor.constant(f"{name}_levels", levels), editor.constant(f"{name}_scales", scales)]
    return editor.op(before, "DequantizeLinear", inputs, f"{name}_restored", name=f"{name}_restore", axis=axis)


def cast_weight(
    editor: Editor, before: ir.Node, name: str, levels: NDArray[Any], scales: NDArray[np.float32], axis: int
) -> ir.Value:
    """Cast and Mul of int8 values with a scale for each slice along ``axis``, float32."""
    shape = [-1 if index == axis else 1 for index in range(levels.ndim)]
    stored = editor.constant(f"{name}_levels", levels)
    steps = editor.constant(f"{name}_scales", scales.reshape(shape))
    cast = editor.op(before, "Cast", [stored], f"{name}_cast", name=f"{name}_to_float", to=int(ir.DataType.FLOAT))
    return editor.op(before, "Mul", [cast, steps], f"{name}_restored", name=f"{name}_restore")
