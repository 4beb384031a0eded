"""Fixed input sizes of OpenVINO models, and feeds that are smaller than them.

OpenVINO plans memory and layouts ahead where every dimension is known, and infers no shapes while it runs: a tenth of
the time of a tower of 16 ms, a quarter to a third of a cached decoder's step. Two kinds of components have usual sizes:

- towers, of which nothing but the batch varies: batch 1;
- decoders that are told by ``decoder_attention_mask`` which cached tokens count (:mod:`vlm_edge.families.
  cached_decoder`): one row, one new token, a cache of fixed length. It fills from its end, behind tokens that the mask
  hides; what cross-attention reads is filled up in the same way, if it has a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_edge.backends.base import Array, Feed
from vlm_edge.processing.manifest import NEW, PAST, SELF_MASK, TOTAL, Component, TensorSpec

BATCH_NAMES = frozenset({"batch", "images"})
"""Names that families give a batch where nothing else of a graph varies; `groups` (of an image's patches) is none."""
FIRST, GROWTH, MOST = 16, 4, 64
"""Tokens that a fixed cache holds at first, by how much it grows where they are not enough, and at most: with more,
copying what is padding takes what fixed sizes save."""


def dimensions(component: Component) -> dict[str, tuple[str, int]]:
    """Every symbolic dimension of the inputs, with an input that has it and at which place."""
    return {
        size: (name, axis)
        for name, spec in reversed(component.inputs.items())
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    }


def fillable(component: Component) -> frozenset[str]:
    """The dimensions along which a decoder's feed may be filled up, since a mask hides what is added."""
    names = set(dimensions(component))
    own = component.inputs.get(SELF_MASK)
    if own is None or own.shape != ("batch", TOTAL) or not {"batch", NEW, PAST} <= names:
        return frozenset()
    masks = [spec.shape for name, spec in component.inputs.items() if name.endswith("mask")]
    hidden = {str(shape[1]) for shape in masks if len(shape) == 2 and shape[0] == "batch"}
    return frozenset(hidden & names | {PAST, TOTAL})


def fixed_sizes(component: Component) -> dict[str, int] | None:
    """Dimension -> its usual size, for every symbolic one; None where a component has no usual sizes."""
    names = set(dimensions(component))
    if len(names) == 1 and names <= BATCH_NAMES:
        return dict.fromkeys(names, 1)
    filled = fillable(component)
    if not filled or names - filled - {"batch", NEW}:
        return None
    return {name: FIRST if name in filled else 1 for name in names} | {TOTAL: FIRST + 1}


def fitting(fixed: Mapping[str, int], actual: Mapping[str, int], filled: frozenset[str]) -> dict[str, int] | None:
    """The fixed sizes for a feed of ``actual`` sizes: these, larger ones, or None where fixed ones are not for it."""
    sizes = dict(fixed)
    for name, size in actual.items():
        if name == TOTAL:
            continue
        if name not in filled:
            if size != fixed[name]:
                return None
            continue
        while sizes[name] < size:
            sizes[name] *= GROWTH
        if sizes[name] > MOST or (size == 0 and name != PAST):
            return None
    return sizes | {TOTAL: sizes[PAST] + 1} if filled else sizes


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> list[int]:
    """The shape with names replaced by sizes."""
    return [sizes[size] if isinstance(size, str) else size for size in spec.shape]


def as_fixed(component: Component, feed: Feed) -> dict[str, Array] | None:
    """The feed of the model with fixed shapes; None where the engine runs the model for any shape."""
    usual, filled = fixed_sizes(component), fillable(component)
    actual = sizes_of(dimensions(component), feed)
    sizes = fitting(usual, actual, filled) if usual is not None else None
    if sizes is None:
        return None
    room = FilledInputs(component, sizes, filled)
    return room.fill(feed, actual) | room.arrays


def sizes_of(places: Mapping[str, tuple[str, int]], feed: Feed) -> dict[str, int]:
    """Dimension -> its size in a feed, by the places that :func:`dimensions` found."""
    return {size: feed[name].shape[axis] for size, (name, axis) in places.items()}


class FilledInputs:
    """The inputs with room, in memory that the model reads: zeros, and a feed's arrays at the end of them."""

    def __init__(self, component: Component, sizes: Mapping[str, int], filled: frozenset[str]) -> None:
        self._sizes = dict(sizes)
        self._last = dict.fromkeys(filled, 0)
        self.arrays: dict[str, Array] = {}
        self._axes: dict[str, tuple[int, str]] = {}
        for name, spec in component.inputs.items():
            axis = next((axis for axis, size in enumerate(spec.shape) if size in filled), None)
            if axis is not None:
                self.arrays[name] = np.zeros(shape_of(spec, sizes), spec.dtype)
                self._axes[name] = axis, str(spec.shape[axis])
        self._outputs = {
            name: next(((axis, str(size)) for axis, size in enumerate(spec.shape) if size in filled), None)
            for name, spec in component.outputs.items()
        }

    def fill(self, feed: Feed, actual: Mapping[str, int]) -> dict[str, Array]:
        """Copy in what there is room for; the other inputs."""
        if any(actual[name] < size for name, size in self._last.items()):
            for array in self.arrays.values():  # nothing of an answer before shall stand in front of this one
                array.fill(0)
        self._last = {name: actual[name] for name in self._last}
        rest = {}
        for name, array in feed.items():
            if name in self.arrays:
                self.arrays[name][self._end(*self._axes[name], actual)] = array
            else:
                rest[name] = array
        return rest

    def cut(self, name: str, output: Array, actual: Mapping[str, int]) -> Array:
        """A copy of an output without what stands for padding."""
        place = self._outputs[name]
        return output.copy() if place is None else output[self._end(*place, actual)].copy()

    def _end(self, axis: int, name: str, actual: Mapping[str, int]) -> tuple[Any, ...]:
        return (slice(None),) * axis + (slice(self._sizes[name] - actual[name], None),)
