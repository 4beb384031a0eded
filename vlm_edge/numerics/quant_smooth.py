"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) where it is free: between a norm's own factors and linear layers.

Channel j of a linear layer's input is divided by s_j and row j of the weight multiplied by it, which changes nothing
but how large both are: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (equation 4). The division goes into the weight and
bias of the LayerNormalization, or the constant factor of an RMS norm, that gives the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vlm_edge.numerics.qdq_graph import Graph, edited
from vlm_edge.numerics.qdq_lower import Linear, find_linears

ALPHA = 0.5
"""How much of the activations' range moves into the weights."""


@dataclass(frozen=True)
class Smoothable:
    """A norm's output that linear layers alone read; ``factors`` are positions of constants among the norm's inputs."""

    tensor: str
    norm: onnx.NodeProto
    factors: tuple[int, ...]
    linears: tuple[Linear, ...]


def smoothable(model: onnx.ModelProto) -> list[Smoothable]:
    """Where smoothing costs nothing, in the graph's order."""
    graph = Graph(model)
    by_data: dict[str, list[Linear]] = {}
    for linear in find_linears(graph):
        by_data.setdefault(linear.data, []).append(linear)
    found = []
    for tensor, linears in by_data.items():
        norm = graph.producers.get(tensor)
        alone = tensor not in graph.outputs and len(graph.consumers[tensor]) == len(linears)
        factors = _factors(graph, norm, linears[0]) if norm is not None and alone else ()
        own = all(len(graph.consumers[linear.weight]) == 1 for linear in linears)
        if norm is not None and factors and own:
            found.append(Smoothable(tensor, norm, factors, tuple(linears)))
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
    values = [graph.constant(norm.input[position]) for position in positions]
    vectors = all(value is not None and value.size == value.shape[-1] == width for value in values if value is not None)
    return positions if vectors and all(value is not None and value.ndim for value in values) else ()


def smooth(
    model: onnx.ModelProto,
    places: Sequence[Smoothable],
    largest: Mapping[str, NDArray[np.float32]],
    alpha: float = ALPHA,
) -> onnx.ModelProto:
    """The same function with its ranges evened out.

    Args:
        largest: each place's tensor -> the largest magnitude of every channel over the calibration inputs.
    """
    graph = Graph(model)
    factors = {}
    for place in places:
        rows = np.max([np.abs(_rows_by_input(graph, linear)).max(axis=1) for linear in place.linears], axis=0)
        factors[place.tensor] = smoothing_factor(largest[place.tensor], rows, alpha)
    return rescaled(model, places, factors)


def rescaled(
    model: onnx.ModelProto, places: Sequence[Smoothable], factors: Mapping[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    """The same function with the channels of each place's tensor divided by its factors, (channels,), all positive."""
    graph = Graph(model)
    replacements: dict[int, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[Any]] = {}
    for place in places:
        factor = factors[place.tensor]
        node = onnx.NodeProto()
        node.CopyFrom(place.norm)
        for position in place.factors:
            name = f"{place.tensor}_rescaled_{position}"
            value = graph.constant(node.input[position])
            assert value is not None
            constants[name] = value / factor
            node.input[position] = name
        replacements[graph.position(place.norm)] = [node]
        for linear in place.linears:
            weight = _rows_by_input(graph, linear) * factor[:, None]
            constants[linear.weight] = np.ascontiguousarray(weight.T if linear.transposed else weight)
    return edited(model, replacements, constants)


def with_outliers(
    model: onnx.ModelProto, *, channels: int = 4, factor: float = 64.0, seed: int = 0
) -> tuple[onnx.ModelProto, int]:
    """The same function with a few channels of its norms ``factor`` times larger, undone in the weights behind them.

    Trained transformers have such channels (Dettmers et al. 2022, arXiv:2208.07339, section 4); they take the range of
    a whole tensor for themselves.

    Returns:
        The model, and how many norms have been given outliers: those that only linear layers read.
    """
    places = smoothable(model)
    generator = np.random.default_rng(seed)
    graph = Graph(model)
    factors = {}
    for place in places:
        width = len(_rows_by_input(graph, place.linears[0]))
        factors[place.tensor] = np.ones(width, np.float32)
        factors[place.tensor][generator.choice(width, channels, replace=False)] /= np.float32(factor)
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
