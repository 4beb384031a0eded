"""INT8 and INT4 weights for what runs in floating point: small on disk, decompressed when a session is made."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vlm_edge.errors import VlmEdgeError
from vlm_edge.numerics.qdq_graph import MICROSOFT, Graph, attribute, copied, edited
from vlm_edge.numerics.qdq_lower import find_linears
from vlm_edge.numerics.quant_blocks import quantize_symmetric_blocks
from vlm_edge.numerics.quantization import quantize_rows, quantize_weight

SMALLEST = 1024
"""Constants with fewer elements stay float32: two more nodes would take what their bytes save."""

Decompression = Literal["cast", "dequantize"]
"""``cast``: Cast and Mul, which onnxruntime folds into a constant when it loads the graph and OpenVINO takes for a
compressed weight. ``dequantize``: DequantizeLinear, which TensorRT reads."""


def compress_weights(
    model: onnx.ModelProto, *, decompression: Decompression, left_out: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """Float32 weights of MatMul, Gemm, Conv and ConvTranspose as int8 constants with a scale for each output channel.

    The operators stay as they are and read a tensor of the same name, so it makes no difference how many share it.
    Every element moves by half a step at most. Weights below :data:`SMALLEST` elements are left alone, and those of
    the nodes named in ``left_out``.
    """
    graph = Graph(model)
    prelude: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {}
    done: set[str] = set()
    for node in graph.nodes:
        axis = _output_axis(node) if node.name not in left_out else None
        name = node.input[1] if axis is not None else ""
        weight = graph.constant(name) if name in graph.initializers and name not in done else None
        if axis is None or weight is None or weight.size < SMALLEST or weight.dtype != np.float32:
            continue
        done.add(name)
        levels, scales = quantize_weight(weight, axis)
        constants[f"{name}_levels"] = levels
        prelude += _decompressed(name, scales, axis % weight.ndim, weight.ndim, decompression, constants)
    return _with_prelude(model, prelude, constants, done)


def compress_blocks(
    model: onnx.ModelProto, *, block_size: int, left_out: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """Float32 weights of linear layers as int4 constants, and DequantizeLinear with a scale for each block of inputs.

    TensorRT's form (operator set 21). Weights whose inputs are no multiple of ``block_size`` are left alone, those
    below :data:`SMALLEST` elements, and those of the nodes named in ``left_out``.

    Raises:
        VlmEdgeError: the graph is of an operator set that can't be read as number 21.
    """
    graph = Graph(model)
    int4 = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
    prelude: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {}
    done: set[str] = set()
    for linear in find_linears(graph):
        name, axis = linear.weight, int(linear.transposed)
        weight = graph.constant(name) if name in graph.initializers and name not in done else None
        if weight is None or weight.size < SMALLEST or weight.dtype != np.float32 or linear.node.name in left_out:
            continue
        if weight.shape[axis] % block_size:
            continue
        done.add(name)
        levels, scales = quantize_symmetric_blocks(weight.T if axis else weight, block_size)
        constants[f"{name}_levels"] = np.ascontiguousarray(levels.T if axis else levels).astype(int4)
        constants[f"{name}_scales"] = np.ascontiguousarray(scales.T if axis else scales)
        inputs = [f"{name}_levels", f"{name}_scales"]
        settings = {"axis": axis, "block_size": block_size}
        prelude.append(helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}_restore", **settings))
    return _with_prelude(_of_operator_set_21(model), prelude, constants, done) if done else model


def _of_operator_set_21(model: onnx.ModelProto) -> onnx.ModelProto:
    """The first with 4-bit types. It differs from number 20 in the types that operators take, and GroupNormalization
    (onnx, docs/Changelog.md)."""
    result = copied(model)
    (default,) = (entry for entry in result.opset_import if entry.domain in ("", "ai.onnx"))
    if default.version == 20 and all(node.op_type != "GroupNormalization" for node in result.graph.node):
        default.version = 21
    if default.version < 21:
        raise VlmEdgeError(
            f"quantize: 4-bit constants need operator set 21; this graph is of {default.version}, and can't be raised",
            "export with `opset: 20` or a later one",
        )
    result.ir_version = max(result.ir_version, 10)
    return result


def compress_tables(model: onnx.ModelProto, *, decompression: Decompression | None) -> onnx.ModelProto:
    """Float32 tables that Gather reads rows of (embeddings) as int8 with a scale for each row.

    Args:
        model: its tables are constants (rows, columns) of at least :data:`SMALLEST` elements, gathered along axis 0.
        decompression: None for com.microsoft.GatherBlockQuantized, which dequantizes no more than the rows it reads;
            else the whole table is decompressed, and whoever reads it goes on reading it by its name.
    """
    graph = Graph(model)
    prelude: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {}
    replacements: dict[int, list[onnx.NodeProto]] = {}
    done: set[str] = set()
    for position, node in enumerate(graph.nodes):
        table = _table(graph, node)
        if table is None:
            continue
        name = node.input[0]
        if decompression is None:
            block = max(16, 1 << (table.shape[1] - 1).bit_length())
            levels, scales = quantize_rows(table, block)
            constants |= {f"{name}_row_levels": levels, f"{name}_row_scales": scales}
            inputs = [f"{name}_row_levels", node.input[1], f"{name}_row_scales"]
            settings = {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
            kernel = helper.make_node(
                "GatherBlockQuantized", inputs, node.output, name=node.name, domain=MICROSOFT, **settings
            )
            replacements[position] = [kernel]
        elif name not in done:
            done.add(name)
            constants[f"{name}_levels"], scales = quantize_weight(table, 0)
            prelude += _decompressed(name, scales, 0, 2, decompression, constants)
    return _with_prelude(edited(model, replacements, constants), prelude, constants, done)


def _with_prelude(
    model: onnx.ModelProto, prelude: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], replaced: set[str]
) -> onnx.ModelProto:
    """``prelude`` before all other nodes; the initializers that its outputs replace are gone."""
    result = edited(model, {0: [*prelude, model.graph.node[0]]}, constants) if prelude else model
    kept = [tensor for tensor in result.graph.initializer if tensor.name not in replaced]
    if len(kept) != len(result.graph.initializer):
        fresh = onnx.GraphProto()
        fresh.initializer.extend(kept)
        del result.graph.initializer[:]
        result.graph.initializer.extend(fresh.initializer)
    return result


def _decompressed(
    name: str,
    scales: NDArray[np.float32],
    axis: int,
    rank: int,
    decompression: Decompression,
    constants: dict[str, NDArray[Any]],
) -> list[onnx.NodeProto]:
    """Nodes that make the float32 tensor ``name`` from ``name_levels``; puts the scales into ``constants``."""
    if decompression == "cast":
        return cast_weight(name, scales, axis, rank, constants)
    constants[f"{name}_scales"] = scales
    inputs = [f"{name}_levels", f"{name}_scales"]
    return [helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}_restore", axis=axis)]


def cast_weight(
    name: str, scales: NDArray[np.float32], axis: int, rank: int, constants: dict[str, NDArray[Any]]
) -> list[onnx.NodeProto]:
    """Cast and Mul from ``name_levels`` to ``name``, float32 of that rank; puts the scales into ``constants``."""
    constants[f"{name}_scales"] = scales.reshape([-1 if index == axis else 1 for index in range(rank)])
    return [
        helper.make_node("Cast", [f"{name}_levels"], [f"{name}_cast"], name=f"{name}_to_float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_cast", f"{name}_scales"], [name], name=f"{name}_restore"),
    ]


def _output_axis(node: onnx.NodeProto) -> int | None:
    """The axis of the weight (second input) that runs over output channels; None where there is no weight."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"MatMul": -1, "Conv": 0, "ConvTranspose": 1}.get(node.op_type)


def _table(graph: Graph, node: onnx.NodeProto) -> NDArray[Any] | None:
    """The table that a Gather reads rows of, if it is worth compressing."""
    if node.op_type != "Gather" or attribute(node, "axis", 0) != 0 or node.input[0] not in graph.initializers:
        return None
    table = graph.constant(node.input[0])
    if table is None or table.ndim != 2 or table.dtype != np.float32 or table.size < SMALLEST:
        return None
    return table
