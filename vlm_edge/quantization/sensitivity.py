"""Sensitivity of a graph's outputs to each quantized layer, and the fewest layers to leave float.

One session runs the float graph with a switch at every layer: its data is rounded where the switch is on (its output,
too, where an integer kernel writes integers), and its weight is fed, float or rounded. So any choice of layers is one
run, and no graph is built for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.chain import PARTS, GraphChain
from vlm_edge.graphs.edit import Editor, only_reader, remove_unused
from vlm_edge.graphs.layers import has_quantized_weight, quantized_weight, restored_constant
from vlm_edge.graphs.match import Linear, Quantizer, find_linears, quantizer_above
from vlm_edge.graphs.ops import HEAVY_OPERATORS
from vlm_edge.quantization.calibration import Feed
from vlm_edge.quantizers.affine import Agreement, agreement

_KERNELS = ("DynamicQuantizeMatMul", "MatMulNBits")
"""Linear layers in forms that no Q/DQ pairs stand for. Of MatMulNBits the weight's rounding is what counts: that of
its data adds 45 dB."""

Rounded = Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class Layer:
    """A heavy operator that reads rounded values; ``outputs``: its own, and that of the Add after it.

    ``rounded`` makes its weight's rounded numbers, which are not kept: those of all layers are a model's size.
    """

    node: str
    operator: str
    outputs: tuple[str, ...]
    weight: str | None
    floating: ir.TensorProtocol | None
    rounded: Rounded | None


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

    def __init__(self, floating: ir.Model, quantized: ir.Model, threads: int, *, outputs: bool = False) -> None:
        model = floating.clone()
        self.layers, self._switches = _switched(model, quantized, outputs)
        self._names = [str(value.name) for value in model.graph.outputs]
        self._chain = GraphChain(model, [layer.outputs[0] for layer in self.layers], PARTS, threads)

    def run(self, feed: Feed, quantized: Collection[str]) -> dict[str, NDArray[Any]]:
        """The outputs with the layers of these nodes quantized, and all others float."""
        found = self._chain.run(self._inputs(feed, quantized))
        return {name: found[name] for name in self._names}

    def runs_alone(self, feed: Feed) -> Iterator[tuple[Layer, Feed, Feed]]:
        """Every layer with the float outputs, and those with it alone quantized."""
        floating = self._chain.run(self._inputs(feed, ()))
        references = {name: floating[name] for name in self._names}
        for layer in self.layers:
            changed = {name for name in (layer.weight, self._switches.get(layer.node)) if name is not None}
            start = self._chain.first_reader(changed)
            got = self._chain.run(self._inputs(feed, {layer.node}), floating, start)
            yield layer, references, got

    def _inputs(self, feed: Feed, quantized: Collection[str]) -> dict[str, NDArray[Any]]:
        values = dict(feed) | {switch: np.array(node in quantized) for node, switch in self._switches.items()}
        for layer in self.layers:
            if layer.weight is None or layer.floating is None or layer.rounded is None:
                continue
            if layer.node in quantized:
                values[layer.weight] = layer.rounded()
            elif layer.weight not in values:
                values[layer.weight] = layer.floating.numpy()
        return values

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
    totals: dict[str, dict[str, Agreement]] = {layer.node: {} for layer in graph.layers}
    for feed in feeds:
        for layer, references, got in graph.runs_alone(feed):
            agreement([(references, got)], totals[layer.node])
    found = [Sensitivity(layer, worst_sqnr_db(totals[layer.node])) for layer in graph.layers]
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


def _switched(model: ir.Model, quantized: ir.Model, rounding: bool) -> tuple[list[Layer], dict[str, str]]:
    """Put the switches into the float graph; its layers, and the input that is the switch of each node."""
    nodes = {str(node.name): node for node in model.graph}
    linears = {linear.output.name: linear for linear in find_linears(model.graph)}
    switches = _Switches(Editor(model.graph))
    layers = []
    for node in quantized.graph:
        linear = linears.get(node.outputs[0].name) if node.op_type in _KERNELS else None
        original = nodes.get(str(node.name)) if linear is None else linear.node
        if original is None or (linear is None and node.op_type not in HEAVY_OPERATORS):
            continue
        add = only_reader(original.outputs[0], "Add")
        outputs = tuple(str(each.outputs[0].name) for each in (original, add) if each is not None)
        before = len(switches.inputs)
        if linear is not None:
            weight, rounded = _in_kernel(switches, node, linear)
        else:
            weight, rounded = _in_pairs(switches, node, original)
        switched = len(switches.inputs) > before
        if not switched and rounded is None:
            continue
        quantizer = _output_quantizer(node) if rounding else None
        if switched and quantizer is not None:
            switches.round_output(original, quantizer)
        floating = None if weight is None else switches.feed(weight)
        name = None if weight is None else str(weight.name)
        layers.append(Layer(str(original.name), original.op_type, outputs, name, floating, rounded))
    remove_unused(model)
    return layers, {node: str(value.name) for node, value in switches.inputs.items()}


class _Switches:
    """Inputs added to a float graph, one a layer, that choose between the layer's values and rounded ones."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.inputs: dict[str, ir.Value] = {}
        self._fed: dict[ir.Value, ir.TensorProtocol] = {}

    def choose(self, node: ir.Node, before: ir.Node, value: ir.Value | None, rounded: ir.Value) -> ir.Value:
        """``value``, or ``rounded`` where the node's switch is on."""
        name = str(node.name)
        if name not in self.inputs:
            switch = ir.Value(
                name=self.editor.fresh(f"{name}_is_quantized"), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(())
            )
            self.editor.graph.inputs.append(switch)
            self.inputs[name] = switch
        return self.editor.op(before, "Where", [self.inputs[name], rounded, value], f"{rounded.name}_chosen")

    def rounded(self, before: ir.Node, value: ir.Value | None, quantizer: Quantizer) -> ir.Value:
        stem = "switched" if value is None else f"{value.name}_switched"
        scale = self.editor.constant(f"{stem}_scale", quantizer.scale)
        zero_point = self.editor.constant(f"{stem}_zero_point", quantizer.zero_point)
        levels = self.editor.op(before, "QuantizeLinear", [value, scale, zero_point], f"{stem}_levels")
        return self.editor.op(before, "DequantizeLinear", [levels, scale, zero_point], f"{stem}_rounded")

    def round_data(self, node: ir.Node, position: int, quantizer: Quantizer) -> None:
        value = node.inputs[position]
        rounded = self.rounded(node, value, quantizer)
        node.replace_input_with(position, self.choose(node, node, value, rounded))

    def round_in_each_run(self, node: ir.Node) -> None:
        """The data over its own range in each run (ONNX: DynamicQuantizeLinear, which DynamicQuantizeMatMul holds)."""
        value = node.inputs[0]
        assert value is not None
        names = [self.editor.fresh(f"{value.name}_{part}") for part in ("levels", "scale", "zero_point")]
        quantize = ir.node("DynamicQuantizeLinear", [value], outputs=[ir.Value(name=name) for name in names])
        self.editor.graph.insert_before(node, quantize)
        rounded = self.editor.op(node, "DequantizeLinear", quantize.outputs, f"{value.name}_rounded")
        node.replace_input_with(0, self.choose(node, node, value, rounded))

    def round_output(self, node: ir.Node, quantizer: Quantizer) -> None:
        output = node.outputs[0]
        readers = output.uses()
        behind = ir.node("Identity", [output])  # a place behind the node
        self.editor.graph.insert_after(node, behind)
        chosen = self.choose(node, behind, output, self.rounded(behind, output, quantizer))
        self.editor.graph.remove(behind, safe=True)
        for reader, position in readers:
            reader.replace_input_with(position, chosen)

    def feed(self, weight: ir.Value) -> ir.TensorProtocol:
        """Make a constant an input; returns its tensor."""
        if weight not in self._fed:
            tensor = weight.const_value
            assert tensor is not None
            self._fed[weight] = tensor
            self.editor.graph.initializers.pop(str(weight.name))
            weight.const_value = None
            self.editor.graph.inputs.append(weight)
        return self._fed[weight]


def _in_pairs(switches: _Switches, node: ir.Node, original: ir.Node) -> tuple[ir.Value | None, Rounded | None]:
    """Round what ``original`` reads as the layer ``node`` with Q/DQ pairs does; its weight, and what rounds that."""
    weight: ir.Value | None = None
    rounded: Rounded | None = None
    for index, value in enumerate(node.inputs[:2]):
        own, quantizer = original.inputs[index], quantizer_above(value)
        stored = own is not None and (own.is_initializer() or own in switches._fed)
        if stored and restored_constant(value) is not None:
            weight, rounded = own, partial(_numbers, restored_constant, value)
        elif quantizer is not None and quantizer.scale.size == 1:
            switches.round_data(original, index, quantizer)
    return weight, rounded


def _in_kernel(switches: _Switches, node: ir.Node, linear: Linear) -> tuple[ir.Value | None, Rounded | None]:
    """The same for one of :data:`_KERNELS`."""
    if node.op_type == "DynamicQuantizeMatMul":
        switches.round_in_each_run(linear.node)
    rounded = partial(_numbers, quantized_weight, node, transposed=linear.transposed)
    return linear.weight, rounded if has_quantized_weight(node) else None


def _numbers(read: Callable[[Any], Any], source: Any, *, transposed: bool = False) -> NDArray[np.float32]:
    weight = read(source)
    return np.ascontiguousarray(weight.T if transposed else weight)


def _output_quantizer(node: ir.Node) -> Quantizer | None:
    """Of a convolution that a pair alone reads: as QLinearConv it rounds what it writes."""
    quantize = only_reader(node.outputs[0], "QuantizeLinear") if node.op_type == "Conv" else None
    if quantize is None:
        return None
    restored = (each.outputs[0] for each in quantize.outputs[0].consumers() if each.op_type == "DequantizeLinear")
    return next((quantizer_above(value) for value in restored), None)
