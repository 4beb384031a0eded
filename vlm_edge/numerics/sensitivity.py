"""What each quantized layer alone costs at a graph's outputs, and what leaving some of them float gives.

One session runs the float graph with a switch at every layer: its data is rounded where the switch is on (as is what
an integer kernel rounds when it writes it), and its weight is fed, float or rounded. So any choice of layers is one
run, and no graph is built for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vlm_edge.machine import usable_cpus
from vlm_edge.numerics.calibration import Feed
from vlm_edge.numerics.qdq_graph import Graph, edited
from vlm_edge.numerics.qdq_layers import quantized_weight, restored_constant
from vlm_edge.numerics.qdq_lower import Linear, find_linears
from vlm_edge.numerics.qdq_retarget import HEAVY_OPERATORS, Quantizer, copied_node, quantizer_above
from vlm_edge.numerics.quantization import Agreement, agreement

_KERNELS = ("DynamicQuantizeMatMul", "MatMulNBits")
"""Linear layers in forms that no Q/DQ pairs stand for. Of MatMulNBits the weight's rounding is what counts: that of
its data adds 45 dB."""


@dataclass(frozen=True)
class Layer:
    """A heavy operator that reads rounded values; ``outputs``: its own, and that of the Add after it."""

    node: str
    operator: str
    outputs: tuple[str, ...]
    weight: str | None
    rounded_weight: NDArray[np.float32] | None


@dataclass(frozen=True)
class Sensitivity:
    """``sqnr_db``: of the worst output over all runs, with only this layer quantized."""

    layer: Layer
    sqnr_db: float


class SwitchedGraph:
    """The float graph with a switch for every layer that ``quantized`` quantizes.

    ``quantized`` has Q/DQ pairs, or linear layers as onnxruntime's dynamic or weight-only kernels.

    Args:
        outputs: whether a convolution becomes a kernel that rounds its output, too; else a pair behind it belongs to
            what reads it.
    """

    def __init__(
        self, floating: onnx.ModelProto, quantized: onnx.ModelProto, threads: int, *, outputs: bool = False
    ) -> None:
        model, self.layers = _switched(floating, quantized, outputs)
        options = ort.SessionOptions()
        options.intra_op_num_threads = min(threads, usable_cpus())
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._names = [value.name for value in model.graph.output]
        self._inputs = {value.name for value in model.graph.input}

    def run(self, feed: Feed, quantized: Collection[str]) -> dict[str, NDArray[Any]]:
        """The outputs with the layers of these nodes quantized, and all others float."""
        values = dict(feed)
        for layer in self.layers:
            if layer.node in quantized:
                if _switch(layer.node) in self._inputs:  # not where the weight alone is rounded
                    values[_switch(layer.node)] = np.array(True)
                if layer.weight is not None and layer.rounded_weight is not None:
                    values[layer.weight] = layer.rounded_weight
        return dict(zip(self._names, self._session.run(self._names, values), strict=True))

    def agreement(
        self, feeds: Iterable[Feed], references: Iterable[Feed], quantized: Collection[str]
    ) -> dict[str, Agreement]:
        """Of every output with the float graph's."""
        runs = ((wanted, self.run(feed, quantized)) for feed, wanted in zip(feeds, references, strict=True))
        return agreement(({name: wanted[name] for name in self._names}, got) for wanted, got in runs)

    def references(self, feeds: Iterable[Feed]) -> list[dict[str, NDArray[Any]]]:
        """The float outputs."""
        return [self.run(feed, ()) for feed in feeds]


def rank_layers(graph: SwitchedGraph, feeds: Sequence[Feed]) -> list[Sensitivity]:
    """Every layer with the error that it alone adds, the worst first.

    Errors of layers add up nearly like independent noise, so that leaving the first k float is the best choice of k.
    """
    references = graph.references(feeds)
    found = [
        Sensitivity(layer, worst_sqnr_db(graph.agreement(feeds, references, {layer.node}))) for layer in graph.layers
    ]
    return sorted(found, key=lambda each: each.sqnr_db)


def worst_sqnr_db(outputs: dict[str, Agreement]) -> float:
    """Of all outputs; 200 where there is none."""
    return min((each.sqnr_db for each in outputs.values()), default=200.0)


def fewest_left_out(
    graph: SwitchedGraph, ranked: Sequence[Sensitivity], feeds: Sequence[Feed], min_sqnr_db: float
) -> list[str]:
    """The nodes of the fewest layers, taken from the top of the ranking, without which the bound is met.

    Bisection over how many; all of them where the bound is never met.
    """
    references = graph.references(feeds)
    nodes = [each.layer.node for each in ranked]
    low, high = 0, len(nodes)
    while low < high:
        middle = (low + high) // 2
        if worst_sqnr_db(graph.agreement(feeds, references, frozenset(nodes[middle:]))) >= min_sqnr_db:
            high = middle
        else:
            low = middle + 1
    return nodes[:low]


def _switch(node: str) -> str:
    return f"{node}_is_quantized"


def _switched(
    floating: onnx.ModelProto, quantized: onnx.ModelProto, rounding: bool
) -> tuple[onnx.ModelProto, list[Layer]]:
    before, after = Graph(floating), Graph(quantized)
    originals = {node.name: node for node in before.nodes}
    linears = {linear.output: linear for linear in find_linears(before)}
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    layers = []
    for node in after.nodes:
        linear = linears.get(node.output[0]) if node.op_type in _KERNELS else None
        original = originals.get(node.name) if linear is None else linear.node
        if original is None or (linear is None and node.op_type not in HEAVY_OPERATORS):
            continue
        moved = copied_node(original)
        if linear is not None:
            added, weight, rounded = _in_kernel(after, node, linear, moved)
        else:
            added, weight, rounded = _in_pairs(before, after, node, moved, constants)
        if not added and rounded is None:
            continue
        written: list[onnx.NodeProto] = []
        quantizer = _output_quantizer(after, node) if rounding else None
        if added and quantizer is not None:
            moved.output[0] = f"{node.name}_exact"
            written = _switched_pair(moved.output[0], original.output[0], node.name, quantizer, constants)
        replacements[before.position(original)] = [*added, moved, *written]
        if added:
            constants[_switch(original.name)] = np.array(False)
        add = before.only_consumer(original.output[0], "Add")
        outputs = (original.output[0],) if add is None else (original.output[0], add.output[0])
        layers.append(Layer(original.name, original.op_type, outputs, weight, rounded))
    model = edited(floating, replacements, constants)
    for layer in layers:
        if _switch(layer.node) in constants:
            _make_input(model, _switch(layer.node), TensorProto.BOOL, ())
        if layer.weight is not None and layer.rounded_weight is not None:
            _make_input(model, layer.weight, TensorProto.FLOAT, layer.rounded_weight.shape)
    return model, layers


_Rounding = tuple[list[onnx.NodeProto], str | None, NDArray[np.float32] | None]
"""Nodes that round a layer's data where its switch is on; its weight's name, and that weight rounded."""


def _in_pairs(
    before: Graph, after: Graph, node: onnx.NodeProto, moved: onnx.NodeProto, constants: dict[str, NDArray[Any]]
) -> _Rounding:
    """Of a layer that reads Q/DQ pairs; ``moved`` is its float original, which gets other inputs."""
    added: list[onnx.NodeProto] = []
    weight, rounded = None, None
    for index, name in enumerate(node.input[:2]):
        original, value, quantizer = moved.input[index], restored_constant(after, name), quantizer_above(after, name)
        if value is not None and original in before.initializers:
            weight, rounded = original, value
        elif quantizer is not None and quantizer.scale.size == 1:
            moved.input[index] = f"{node.name}_{index}_chosen"
            added += _switched_pair(original, moved.input[index], node.name, quantizer, constants)
    return added, weight, rounded


def _in_kernel(after: Graph, node: onnx.NodeProto, linear: Linear, moved: onnx.NodeProto) -> _Rounding:
    """Of one of :data:`_KERNELS`."""
    weight = quantized_weight(after, node)
    rounded = np.ascontiguousarray(weight.T) if weight is not None and linear.transposed else weight
    added: list[onnx.NodeProto] = []
    if node.op_type == "DynamicQuantizeMatMul":
        moved.input[0] = f"{moved.name}_0_chosen"
        added = _switched_in_each_run(linear.data, moved.input[0], moved.name)
    return added, linear.weight, rounded


def _output_quantizer(graph: Graph, node: onnx.NodeProto) -> Quantizer | None:
    """Of a convolution that a pair alone reads: as QLinearConv it rounds what it writes."""
    quantize = graph.only_consumer(node.output[0], "QuantizeLinear") if node.op_type == "Conv" else None
    if quantize is None:
        return None
    restored = (each.output[0] for each in graph.consumers[quantize.output[0]] if each.op_type == "DequantizeLinear")
    return next((quantizer_above(graph, name) for name in restored), None)


def _switched_pair(
    name: str, chosen: str, node: str, quantizer: Quantizer, constants: dict[str, NDArray[Any]]
) -> list[onnx.NodeProto]:
    """``chosen`` is ``name``, rounded where the node's switch is on."""
    stem = f"{chosen}_switched"
    parameters = [f"{stem}_scale", f"{stem}_zero_point"]
    constants |= dict(zip(parameters, (quantizer.scale, quantizer.zero_point), strict=True))
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{stem}_levels"]),
        helper.make_node("DequantizeLinear", [f"{stem}_levels", *parameters], [f"{stem}_rounded"]),
        helper.make_node("Where", [_switch(node), f"{stem}_rounded", name], [chosen]),
    ]


def _switched_in_each_run(name: str, chosen: str, node: str) -> list[onnx.NodeProto]:
    """``chosen`` is ``name``, rounded over its own range in this run where the node's switch is on (ONNX:
    DynamicQuantizeLinear, which DynamicQuantizeMatMul holds)."""
    stem = f"{chosen}_switched"
    levels = [f"{stem}_{part}" for part in ("levels", "scale", "zero_point")]
    return [
        helper.make_node("DynamicQuantizeLinear", [name], levels),
        helper.make_node("DequantizeLinear", levels, [f"{stem}_rounded"]),
        helper.make_node("Where", [_switch(node), f"{stem}_rounded", name], [chosen]),
    ]


def _make_input(model: onnx.ModelProto, name: str, dtype: int, shape: tuple[int, ...]) -> None:
    """An initializer that a feed may replace."""
    if all(value.name != name for value in model.graph.input):
        model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
