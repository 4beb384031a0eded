"""The job of an explainer: one compiled component, and a feed of the right shapes where none is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.backends.base import Array, Feed
from vlm_edge.errors import VlmEdgeError
from vlm_edge.explain.view import Int8Speed
from vlm_edge.machine import Machine
from vlm_edge.processing.manifest import Component

USUAL_TOKENS = 16
"""Size of a free dimension that is neither a batch nor a number of images."""


@dataclass(frozen=True)
class ExplainJob:
    """One file to explain: a component's, or a single graph (with the engine's default options).

    ``feed``: the inputs to time it with, ``fed`` their origin in words; without them noise, with the sizes of ``dims``
    for free dimensions. ``runs`` is 0 for no timing. ``scheme``: the component's quantization scheme, ``component`` its
    row in the manifest. ``machine``, ``isa`` and ``speed`` are the host's.
    """

    name: str
    file: Path
    threads: int
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    feed: Feed | None = None
    fed: str = "noise"
    scheme: str = ""
    component: Component | None = None
    runs: int = 0
    dims: Mapping[str, int] = field(default_factory=dict)
    machine: Machine = "other"
    isa: frozenset[str] = frozenset()
    speed: Int8Speed = field(default_factory=Int8Speed)


def generated_feed(
    inputs: Mapping[str, tuple[Any, tuple[int | str | None, ...]]], dims: Mapping[str, int]
) -> dict[str, Array]:
    """Arrays of the inputs' types and shapes: normal numbers for floats, ones for integers and booleans.

    A dimension without a number takes it from ``dims`` by its name. Where it is not there, the first one (the batch)
    is 1, and so is each that counts images; ``past + new`` is the sum of both; any other is :data:`USUAL_TOKENS`.

    Args:
        inputs: name -> numpy type and shape.
        dims: sizes of named dimensions.

    Raises:
        VlmEdgeError: a name in ``dims`` is no dimension of the inputs.
    """
    named = {dim for _, shape in inputs.values() for dim in shape if isinstance(dim, str)}
    if unknown := sorted(set(dims) - named):
        raise VlmEdgeError(
            f"--dim {unknown[0]}: no input has a dimension of that name",
            f"free dimensions: {', '.join(sorted(named)) or 'none'}",
        )
    generator = np.random.default_rng(0)
    feed: dict[str, Array] = {}
    for name, (dtype, shape) in inputs.items():
        sizes = [_size(dim, place, dims) for place, dim in enumerate(shape)]
        if np.issubdtype(dtype, np.floating):
            feed[name] = generator.normal(size=sizes).astype(dtype)
        else:
            feed[name] = np.ones(sizes, dtype)
    return feed


def _size(dim: int | str | None, place: int, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    name = dim or ""
    if name in dims:
        return dims[name]
    if name.count(" + ") == 1:
        return sum(_size(part, place, dims) for part in name.split(" + "))
    return 1 if place == 0 or "image" in name else USUAL_TOKENS
