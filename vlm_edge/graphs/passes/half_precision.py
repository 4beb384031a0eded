"""Write a float32 graph as a strongly typed 16-bit one, and back."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from vlm_edge.graphs.edit import Array, Editor, done, tensor_of
from vlm_edge.graphs.shapes import element_types

HALVES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895e38}
"""The largest number of each."""
ROUNDING = {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}
"""The largest error of rounding to each, relative to the number."""
FLOAT = ir.DataType.FLOAT
SMALLEST_STORED = 1024
"""Constants of float32 nodes with fewer elements stay float32: a Cast takes what their bytes save."""
MOST_LOST = 2.0**-16
"""Part of a constant's largest value: a float32 weight that was trained in 16 bits loses less than this in them."""
MOST_SCALE_LOST = 2.0**-6
"""Part of a quantizer's scale that 16 bits may lose: half a step of 8 bits is as much at the range's end."""
_AS_THEY_ARE = frozenset({"Cast", "CastLike", "Shape", "Size"})
"""Operators that take any type, and whose output's type is not their input's."""


@dataclass
class HalfPrecision(ir.passes.InPlacePass):
    """Weights and activations become 16-bit, but for the nodes named in ``kept``; inputs and outputs stay float32.

    A Cast stands wherever two types meet. A node stays float32, too, if its operator has no 16-bit form in the graph's
    operator set, or if it has a body. A quantizer has the type of what reads its values, since NVIDIA's compiler wants
    the scales of both factors in one type; where 16 bits can't hold a scale, that is float32. Large constants of
    float32 nodes that lose nothing in 16 bits are stored in 16, with a Cast.
    """

    dtype: ir.DataType
    kept: frozenset[str] = frozenset()
    _casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict, init=False, repr=False)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, types = model.graph, element_types(model)
        floats = {name for name, each in types.items() if each == FLOAT}
        kept: AbstractSet[str | None] = self.kept | self._finer(graph)
        half: set[ir.Value] = set()
        editor = Editor(graph)
        self._casts.clear()
        for node in list(graph.all_nodes()):
            taken = half_inputs(node, self.dtype, model, floats) if node.graph is graph else {}
            computes = bool(taken) and self._computes(node, kept)
            for place, value in enumerate(node.inputs):
                if value is None or value.name not in floats or node.op_type in _AS_THEY_ARE:
                    continue
                wanted = self.dtype if computes and place in taken else FLOAT
                if tensor_of(value) is not None:
                    new = self._constant(editor, value, wanted)
                else:
                    new = value if (value in half) == (wanted != FLOAT) else self._cast(editor, value, wanted)
                if new is not value:
                    node.replace_input_with(place, new)
            if computes:
                half.update(value for value in node.outputs if value.name in floats)
        for value in half:
            value.type = ir.TensorType(self.dtype)
        for place, value in enumerate(graph.outputs):
            if value in half:
                graph.outputs[place] = self._output(editor, value)
        done(model)
        for (value, to), new in self._casts.items():
            name = str(value.name)
            if to != FLOAT and new.is_initializer() and name not in graph.initializers:
                new.name = name  # the only copy of a weight has the weight's name
        return ir.passes.PassResult(model, True)

    def _computes(self, node: ir.Node, kept: AbstractSet[str | None]) -> bool:
        """Whether a node that could be 16-bit is."""
        if node.op_type == "QuantizeLinear":
            return any(self._computes(reader, kept) for reader in node.outputs[0].consumers())
        if node.op_type == "DequantizeLinear":
            return any(reader.name not in kept for reader in node.outputs[0].consumers())
        return node.name not in kept

    def _finer(self, graph: ir.Graph) -> set[str | None]:
        """The nodes that read dequantized values whose scale 16 bits can't hold."""
        quantizers = (node for node in graph if node.op_type == "DequantizeLinear" and not self._holds(node.inputs[1]))
        return {reader.name for node in quantizers for reader in node.outputs[0].consumers()}

    def _holds(self, scale: ir.Value | None) -> bool:
        """Whether 16 bits hold a quantizer's scale."""
        tensor = tensor_of(scale)
        if tensor is None:
            return True
        wanted = tensor.numpy().astype(np.float32)
        error = np.abs(_rounded(wanted, self.dtype).astype(np.float32) - wanted)
        return bool((error <= MOST_SCALE_LOST * wanted).all())

    def _constant(self, editor: Editor, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """A constant as ``wanted``: itself, a 16-bit copy, or float32 from a 16-bit copy."""
        tensor = tensor_of(value)
        assert tensor is not None
        key = (value, self.dtype)
        if wanted == FLOAT and ((value, FLOAT) in self._casts or tensor.size < SMALLEST_STORED):
            return self._casts.get((value, FLOAT), value)
        numbers = tensor.numpy()
        if key not in self._casts:
            rounded = _rounded(numbers, self.dtype)
            with np.errstate(invalid="ignore"):
                lost = np.abs(rounded.astype(np.float32) - numbers).max(initial=0.0)
            if wanted == FLOAT and not lost <= MOST_LOST * np.abs(numbers).max(initial=0.0):
                self._casts[value, FLOAT] = value
                return value
            self._casts[key] = editor.constant(f"{value.name}_{self.dtype.name.lower()}", rounded)
        return self._casts[key] if wanted != FLOAT else self._cast(editor, self._casts[key], FLOAT, key=value)

    def _cast(self, editor: Editor, value: ir.Value, to: ir.DataType, *, key: ir.Value | None = None) -> ir.Value:
        """``value`` in another type, by one Cast for all who read it so."""
        known = (key or value, to)
        if known not in self._casts:
            self._casts[known] = cast_behind(editor, value, to)
        return self._casts[known]

    def _output(self, editor: Editor, value: ir.Value) -> ir.Value:
        """A 16-bit output of the graph in float32, under its name."""
        name, shape = str(value.name), value.shape
        value.name = editor.fresh(f"{name}_{self.dtype.name.lower()}")
        output = cast_behind(editor, value, FLOAT)
        output.name, output.shape = name, shape
        return output


def cast_behind(editor: Editor, value: ir.Value, to: ir.DataType) -> ir.Value:
    """A new Cast of ``value``, directly behind what computes it."""
    output = ir.Value(name=editor.fresh(f"{value.name}_{to.name.lower()}"), type=ir.TensorType(to), shape=value.shape)
    node = ir.node("Cast", [value], {"to": int(to)}, outputs=[output], name=output.name)
    producer = value.producer()
    if producer is None:
        editor.graph.insert_before(editor.graph[0], node)
    else:
        editor.graph.insert_after(producer, node)
    return output


def half_inputs(
    node: ir.Node, dtype: ir.DataType, model: ir.Model, floats: Collection[str | None]
) -> dict[int, ir.Value]:
    """The inputs among ``floats``, by position, that a node's operator takes in 16 bits, with its output in 16 bits
    too; none where it has no such form, or a body."""
    if node.op_type in _AS_THEY_ARE or any(
        each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()
    ):
        return {}
    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return {}
    wanted = f"tensor({dtype.name.lower()})"
    takes = {each.type_param_str for each in schema.type_constraints if wanted in each.allowed_type_strs}
    if not schema.outputs or schema.outputs[0].type_str not in takes:
        return {}
    formals = [*schema.inputs, *[schema.inputs[-1]] * len(node.inputs)] if schema.inputs else []
    return {
        place: value
        for place, (value, formal) in enumerate(zip(node.inputs, formals, strict=False))
        if value is not None and value.name in floats and formal.type_str in takes
    }


def as_float32(model: ir.Model, *, rounded: bool = False) -> HalfPrecision | None:
    """Undo :class:`HalfPrecision` in place; the pass that does it again, None where the graph is not a 16-bit one.

    Args:
        model: changed.
        rounded: round every tensor that was 16-bit to 16 bits: the same results in float32 arithmetic, for engines
            without 16-bit operators.
    """
    graph, wanted = model.graph, set(HALVES.values())
    constants = [value.const_value for value in graph.initializers.values()]
    if all(tensor is None or tensor.dtype not in wanted for tensor in constants):
        return None
    types = element_types(model)
    names = {name: each for name, each in types.items() if each in wanted}
    dtype = next(iter(names.values()))
    editor = Editor(graph)
    kept = {
        str(node.name) for node in graph if node.op_type != "Cast" and types.get(str(node.outputs[0].name)) == FLOAT
    }
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == dtype:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(FLOAT)
    for node in list(graph):
        for value in node.outputs:
            if rounded and value.name in names and node.op_type != "Cast":
                _round(editor, value, dtype)
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is not None and (source.name in names or node.outputs[0].name in names):
            if rounded and node.outputs[0].name in names:
                _round(editor, source, dtype, only=node)
            _remove(graph, node)
    for value in (value for node in graph for value in node.outputs if value.name in names):
        value.type = ir.TensorType(FLOAT)
    done(model)
    return HalfPrecision(dtype, frozenset(kept))


def _round(editor: Editor, value: ir.Value, dtype: ir.DataType, only: ir.Node | None = None) -> None:
    """Let those who read ``value`` (or one of them) read it rounded to ``dtype``."""
    readers = [(reader, place) for reader, place in value.uses() if only is None or reader is only]
    rounded = cast_behind(editor, cast_behind(editor, value, dtype), FLOAT)
    for reader, place in readers:
        reader.replace_input_with(place, rounded)


def _remove(graph: ir.Graph, cast: ir.Node) -> None:
    """Take out a Cast; an output of the graph keeps its name."""
    source, output = cast.inputs[0], cast.outputs[0]
    assert source is not None
    name, places = output.name, [place for place, value in enumerate(graph.outputs) if value is output]
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(cast, safe=True)
    if places:
        source.name, source.type, source.shape = name, ir.TensorType(FLOAT), output.shape


def _rounded(numbers: Array, dtype: ir.DataType) -> Array:
    with np.errstate(over="ignore"):
        return numbers.astype(dtype.numpy())
