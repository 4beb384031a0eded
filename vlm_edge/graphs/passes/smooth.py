"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) between a norm's own factors and linear layers.

Channel j of a linear layer's input is divided by s_j and row j of the weight multiplied by it, which keeps
their product: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (equation 4). The division goes into the weight and
bias of the LayerNormalization, or the constant factor of an RMS norm, that gives the input. That is free where linear
layers alone read the norm's output. Where a residual connection reads it too, as in BERT, it costs a multiplication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.graphs.edit import Editor, constant, maker, remove_unused
from vlm_edge.graphs.match import Linear, find_linears

ALPHA = 0.5
"""The part of the activations' range that moves into the weights, as an exponent (equation 4)."""
OUTLIER = 16.0
"""Smoothing that costs a multiplication is done if the largest channel is so many times the median channel."""


@dataclass(frozen=True)
class Smoothable:
    """A norm's output that linear layers read.

    ``factors`` are positions of constants among the norm's inputs. ``others`` are the nodes that read it beside the
    linear layers and need the channels unscaled: a multiplication is added before them, unless they are a
    multiplication by constants themselves.
    """

    value: ir.Value
    norm: ir.Node
    factors: tuple[int, ...]
    linears: tuple[Linear, ...]
    others: tuple[ir.Node, ...]

    @property
    def tensor(self) -> str:
        return str(self.value.name)

    @property
    def free(self) -> bool:
        return not self.others


def smoothable(model: ir.Model) -> list[Smoothable]:
    """Places where channels can be scaled without changing the function, in the graph's order."""
    by_data: dict[ir.Value, list[Linear]] = {}
    for linear in find_linears(model.graph):
        by_data.setdefault(linear.data, []).append(linear)
    found = []
    for value, linears in by_data.items():
        norm = maker(value)
        factors = _factors(norm, linears[0]) if norm is not None and not value.is_graph_output() else ()
        own = all(len(linear.weight.uses()) == 1 for linear in linears)
        if norm is not None and factors and own:
            layers = {linear.node for linear in linears}
            others = tuple(reader for reader in value.consumers() if reader not in layers)
            found.append(Smoothable(value, norm, factors, tuple(linears), others))
    return found


def _factors(norm: ir.Node, linear: Linear) -> tuple[int, ...]:
    """Positions of the constants that scale ``norm``'s channels; none where it has no such."""
    weight = linear.weight_by_input()
    width = 0 if weight is None else weight.shape[0]
    positions: tuple[int, ...] = ()
    if norm.op_type == "LayerNormalization":
        positions = tuple(index for index, value in enumerate(norm.inputs) if index and value is not None)
    elif norm.op_type in ("RMSNormalization", "SimplifiedLayerNormalization"):
        positions = (1,)
    elif norm.op_type == "Mul":
        positions = tuple(index for index, value in enumerate(norm.inputs) if constant(value) is not None)[:1]
    return positions if all(_is_vector(norm.inputs[position], width) for position in positions) else ()


def smooth(model: ir.Model, largest: Mapping[str, NDArray[np.float32]], alpha: float = ALPHA) -> frozenset[str]:
    """Scale channels of a graph in place where that evens out ranges; returns the tensors whose channels were scaled.

    Args:
        largest: the tensor of each of :func:`smoothable` -> the largest magnitude of every channel over the
            calibration inputs.
    """
    places, factors = smoothable(model), {}
    for place in places:
        if place.free or has_outliers(largest[place.tensor]):
            rows = np.max([np.abs(_rows_by_input(linear)).max(axis=1) for linear in place.linears], axis=0)
            factors[place.tensor] = smoothing_factor(largest[place.tensor], rows, alpha)
    rescale(model, [place for place in places if place.tensor in factors], factors)
    return frozenset(factors)


def has_outliers(largest: NDArray[np.float32]) -> bool:
    """Whether some channels, (channels,), are so large that a multiplication is worth its time."""
    return bool(largest.max() > OUTLIER * np.median(largest))


def rescale(model: ir.Model, places: Sequence[Smoothable], factors: Mapping[str, NDArray[np.float32]]) -> None:
    """Divide the channels of each place's tensor by its factors, (channels,), all positive; the function stays."""
    editor = Editor(model.graph)
    for place in places:
        factor = factors[place.tensor]
        for position in place.factors:
            value = constant(place.norm.inputs[position])
            assert value is not None
            new = editor.constant(f"{place.tensor}_rescaled_{position}", value / factor)
            place.norm.replace_input_with(position, new)
        for linear in place.linears:
            weight = _rows_by_input(linear) * factor[:, None]
            _set_constant(linear.weight, np.ascontiguousarray(weight.T if linear.transposed else weight))
        if place.others:
            _restore(editor, place, factor)
    remove_unused(model)


def _restore(editor: Editor, place: Smoothable, factor: NDArray[np.float32]) -> None:
    """Give the other readers the unscaled values: through their own constant, or a multiplication."""
    restored: ir.Value | None = None
    for reader in place.others:
        inputs = list(reader.inputs)
        own = next((index for index, value in enumerate(inputs) if _is_vector(value, factor.size)), None)
        if reader.op_type == "Mul" and own is not None:
            numbers = constant(inputs[own])
            assert numbers is not None
            new = editor.constant(f"{reader.outputs[0].name}_rescaled", numbers * factor)
            reader.replace_input_with(own, new)
            continue
        if restored is None:
            given = [place.value, editor.constant(f"{place.tensor}_factor", factor)]
            behind = ir.node("Identity", [place.value])  # a place behind the norm
            editor.graph.insert_after(place.norm, behind)
            restored = editor.op(behind, "Mul", given, f"{place.tensor}_restored", name=f"{place.tensor}_restore")
            editor.graph.remove(behind, safe=True)
        for index, value in enumerate(inputs):
            if value is place.value:
                reader.replace_input_with(index, restored)


def _set_constant(value: ir.Value, array: NDArray[Any]) -> None:
    """Replace an initializer's numbers; the shape stays."""
    value.const_value = ir.tensor(array, name=value.name)


def _is_vector(value: ir.Value | None, width: int) -> bool:
    numbers = constant(value)
    return numbers is not None and numbers.ndim > 0 and numbers.size == numbers.shape[-1] == width


def smoothing_factor(
    activations: NDArray[np.float32], weights: NDArray[np.float32], alpha: float
) -> NDArray[np.float32]:
    """Equation 4 for the largest magnitudes of each channel, (channels,) both; channels that are all zero stay."""
    used = (activations > 0) & (weights > 0)
    safe = np.where(used, activations, 1.0), np.where(used, weights, 1.0)
    factor = np.where(used, safe[0] ** alpha / safe[1] ** (1 - alpha), 1.0)
    return np.clip(factor, 1e-5, 1e5).astype(np.float32)


def _rows_by_input(linear: Linear) -> NDArray[np.float32]:
    """The weight as (in, out)."""
    weight = linear.weight_by_input()
    assert weight is not None
    return weight
