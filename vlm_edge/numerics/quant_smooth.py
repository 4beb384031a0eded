"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) between a norm's own factors and linear layers.

Channel j of a linear layer's input is divided by s_j and row j of the weight multiplied by it, which changes nothing
but how large both are: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (equation 4). The division goes into the weight and
bias of the LayerNormalization, or the constant factor of an RMS norm, that gives the input. That is free where linear
layers alone read the norm's output. Where a residual connection reads it too, as in BERT, it costs a multiplication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vlm_edge.numerics.qdq_graph import Graph, edited
from vlm_edge.numerics.qdq_lower import Linear, find_linears
from vlm_edge.numerics.qdq_retarget import copied_node

ALPHA = 0.5
"""How much of the activations' range moves into the weights."""
OUTLIER = 16.0
"""Where smoothing costs a multiplication it is done if the largest channel is so many times the median channel."""


@dataclass(frozen=True)
class Smoothable:
    """A norm's output that linear layers read.

    ``factors`` are positions of constants among the norm's inputs. ``others`` are the nodes that read it beside the
    linear layers, and need its channels as they were: a multiplication that is no part of the layers makes them so,
    unless they are a multiplication by constants themselves.
    """

    tensor: str
    norm: onnx.NodeProto
    factors: tuple[int, ...]
    linears: tuple[Linear, ...]
    others: tuple[onnx.NodeProto, ...]

    @property
    def free(self) -> bool:
        return not self.others


def smoothable(model: onnx.ModelProto) -> list[Smoothable]:
    """Where channels can be scaled without changing the function, in the graph's order."""
    graph = Graph(model)
    by_data: dict[str, list[Linear]] = {}
    for linear in find_linears(graph):
        by_data.setdefault(linear.data, []).append(linear)
    found = []
    for tensor, linears in by_data.items():
        norm = graph.producers.get(tensor)
        factors = _factors(graph, norm, linears[0]) if norm is not None and tensor not in graph.outputs else ()
        own = all(len(graph.consumers[linear.weight]) == 1 for linear in linears)
        if norm is not None and factors and own:
            layers = {id(linear.node) for linear in linears}
            others = tuple(reader for reader in graph.consumers[tensor] if id(reader) not in layers)
            found.append(Smoothable(tensor, norm, factors, tuple(linears), others))
    return found


def _factors(graph: Graph, norm: onnx.NodeProto, linear: Linear) -> tuple[int, ...]:
    """Positions of the constants that scale ``norm``'s channels; none where it has no such."""
    weight = graph.constant(linear.weight)
    width = 0 if weight is None else weight.shape[1 if linear.transposed else 0]
    positions: tuple[int, ...] = ()
    if norm.op_type == "LayerNormalization":
        positions = tuple(index for index, name in enumerate(norm.input) if index and name)
    elif norm.op_type in ("RMSNormalization", "SimplifiedLayerNormalization"):
        positions = (1,)
    elif norm.op_type == "Mul":
        positions = tuple(index for index, name in enumerate(norm.input) if graph.constant(name) is not None)[:1]
    return positions if all(_vector(graph, norm.input[position], width) for position in positions) else ()


def smooth(
    model: onnx.ModelProto,
    places: Sequence[Smoothable],
    largest: Mapping[str, NDArray[np.float32]],
    alpha: float = ALPHA,
) -> tuple[onnx.ModelProto, frozenset[str]]:
    """The same function with its ranges evened out, and the tensors whose channels were scaled for it.

    Args:
        largest: each place's tensor -> the largest magnitude of every channel over the calibration inputs.
    """
    graph = Graph(model)
    factors = {}
    for place in places:
        if place.free or has_outliers(largest[place.tensor]):
            rows = np.max([np.abs(_rows_by_input(graph, linear)).max(axis=1) for linear in place.linears], axis=0)
            factors[place.tensor] = smoothing_factor(largest[place.tensor], rows, alpha)
    scaled = [place for place in places if place.tensor in factors]
    return rescaled(model, scaled, factors), frozenset(factors)


def has_outliers(largest: NDArray[np.float32]) -> bool:
    """Whether some channels, (channels,), are so large that a multiplication is worth its time."""
    return bool(largest.max() > OUTLIER * np.median(largest))


def rescaled(
    model: onnx.ModelProto, places: Sequence[Smoothable], factors: Mapping[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    """The same function with the channels of each place's tensor divided by its factors, (channels,), all positive."""
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    for place in places:
        factor = factors[place.tensor]
        norm = replacements.setdefault(graph.position(place.norm), [copied_node(place.norm)])[0]
        for position in place.factors:
            name = f"{place.tensor}_rescaled_{position}"
            value = graph.constant(norm.input[position])
            assert value is not None
            constants[name] = value / factor
            norm.input[position] = name
        for linear in place.linears:
            weight = _rows_by_input(graph, linear) * factor[:, None]
            constants[linear.weight] = np.ascontiguousarray(weight.T if linear.transposed else weight)
        if place.others:
            _restore(graph, place, factor, replacements, constants)
    return edited(model, replacements, constants)


def _restore(
    graph: Graph,
    place: Smoothable,
    factor: NDArray[np.float32],
    replacements: dict[int, list[onnx.NodeProto]],
    constants: dict[str, NDArray[Any]],
) -> None:
    """Let the other readers find what they found before: by their own constant, or by a multiplication."""
    restored = f"{place.tensor}_restored"
    for reader in place.others:
        node = replacements.setdefault(graph.position(reader), [copied_node(reader)])[0]
        names = list(node.input)
        constant = next((index for index, name in enumerate(names) if _vector(graph, name, factor.size)), None)
        if node.op_type == "Mul" and constant is not None:
            name = f"{node.output[0]}_rescaled"
            value = graph.constant(names[constant])
            assert value is not None
            constants[name] = value * factor
            node.input[constant] = name
        else:
            node.input[:] = [restored if name == place.tensor else name for name in names]
            constants[f"{place.tensor}_factor"] = factor
    if f"{place.tensor}_factor" in constants:
        inputs = [place.tensor, f"{place.tensor}_factor"]
        mul = helper.make_node("Mul", inputs, [restored], name=f"{place.tensor}_restore")
        replacements[graph.position(place.norm)].append(mul)


def _vector(graph: Graph, name: str, width: int) -> bool:
    value = graph.constant(name)
    return value is not None and value.ndim > 0 and value.size == value.shape[-1] == width


def with_outliers(model: onnx.ModelProto, *, channels: int = 4, factor: float = 64.0) -> tuple[onnx.ModelProto, int]:
    """The same function with a few channels of its norms ``factor`` times larger, undone in the weights behind them.

    Trained transformers have such channels (Dettmers et al. 2022, arXiv:2208.07339, section 4); they take the range of
    a whole tensor for themselves. Here they are those with the largest weights of the norm.

    Returns:
        The model, and how many norms have been given outliers: those that linear layers read.
    """
    places = smoothable(model)
    graph = Graph(model)
    factors = {}
    for place in places:
        gains = graph.constant(place.norm.input[place.factors[0]])
        assert gains is not None
        divisors = np.ones(gains.size, np.float32)
        divisors[np.argsort(-np.abs(gains.reshape(-1)), kind="stable")[:channels]] /= np.float32(factor)
        factors[place.tensor] = divisors
    return rescaled(model, places, factors), len(places)


def smoothing_factor(
    activations: NDArray[np.float32], weights: NDArray[np.float32], alpha: float
) -> NDArray[np.float32]:
    """Equation 4 for the largest magnitudes of each channel, (channels,) both; channels that are all zero stay."""
    used = (activations > 0) & (weights > 0)
    safe = np.where(used, activations, 1.0), np.where(used, weights, 1.0)
    factor = np.where(used, safe[0] ** alpha / safe[1] ** (1 - alpha), 1.0)
    return np.clip(factor, 1e-5, 1e5).astype(np.float32)


def _rows_by_input(graph: Graph, linear: Linear) -> NDArray[np.float32]:
    """The weight as (in, out)."""
    weight = graph.constant(linear.weight)
    assert weight is not None
    return weight.T if linear.transposed else weight
