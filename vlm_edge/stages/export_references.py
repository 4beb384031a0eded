"""Reference runs of every component in torch: computed while the model is in memory, kept in files.

So the model can be dropped before the first graph is loaded, and only one of the two is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlm_edge.backends.base import Array
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import ComponentExport

SUM = " + "
"""Between the names of two dimensions: an axis as long as both."""


@dataclass(frozen=True)
class Reference:
    """A component's inputs at some sizes of its dynamic dimensions, and its outputs in torch."""

    sizes: Mapping[str, int]
    feed: Mapping[str, Array]
    outputs: Mapping[str, Array]

    def save(self, path: Path) -> None:
        """Write a numpy archive; :meth:`load` reads it."""
        sizes = {f"size:{name}": np.int64(size) for name, size in self.sizes.items()}
        feed = {f"feed:{name}": array for name, array in self.feed.items()}
        np.savez(path, **sizes, **feed, **{f"output:{name}": array for name, array in self.outputs.items()})  # type: ignore[arg-type]

    @staticmethod
    def load(path: Path) -> Reference:
        """The reference that :meth:`save` wrote."""
        parts: dict[str, dict[str, Array]] = {"size": {}, "feed": {}, "output": {}}
        with np.load(path) as archive:
            for key in archive.files:
                kind, _, name = key.partition(":")
                parts[kind][name] = archive[key]
        return Reference({name: int(size) for name, size in parts["size"].items()}, parts["feed"], parts["output"])


def torch_references(name: str, component: ComponentExport) -> Iterator[Reference]:
    """The component in torch at several sizes, one set after the other: see :func:`size_sets`.

    Raises:
        VlmEdgeError: the model's own output is not finite.
    """
    for sizes in size_sets(component):
        feed = resized(component, sizes)
        with torch.no_grad():
            outputs = component.module(*feed.values())
        for output, tensor in zip(component.output_shapes, outputs, strict=True):
            if not tensor.isfinite().all():
                raise VlmEdgeError(
                    f"{name}: the model's own {output} is not finite at {sizes}",
                    "its weights hold NaN or infinity, or are too large: train or copy the checkpoint again",
                )
        yield Reference(
            sizes,
            {key: tensor.numpy() for key, tensor in feed.items()},
            {key: tensor.numpy() for key, tensor in zip(component.output_shapes, outputs, strict=True)},
        )


def save_references(name: str, component: ComponentExport, folder: Path) -> None:
    """Write :func:`torch_references` to ``folder/NAME.INDEX.npz``."""
    for index, reference in enumerate(torch_references(name, component)):
        reference.save(folder / f"{name}.{index}.npz")


def saved_references(name: str, folder: Path) -> Iterator[Reference]:
    """The references that :func:`save_references` wrote, one after the other."""
    for path in sorted(folder.glob(f"{name}.*.npz")):
        yield Reference.load(path)


def size_sets(component: ComponentExport) -> Iterator[dict[str, int]]:
    """Sizes of every dynamic dimension: the example's, one more of each, the least of each (1, or 0 if that is one).

    Where one dimension alone varies, the first and the last differ in all that can: one more would be the largest run,
    and take most memory, for nothing new.
    """
    sizes = {
        dimension: component.example[name].shape[axis]
        for name, axes in component.dynamic.items()
        for axis, dimension in axes.items()
        if SUM not in dimension
    }
    yield sizes
    if len(sizes) > 1:
        yield {dimension: size + 1 for dimension, size in sizes.items()}
    yield {dimension: 0 if dimension in component.may_be_empty else 1 for dimension in sizes}


def resized(component: ComponentExport, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The example inputs at other sizes of the dynamic dimensions: repeated, then cut."""
    feed = {}
    for name, tensor in component.example.items():
        for axis, dimension in component.dynamic.get(name, {}).items():
            size = sum(sizes[part] for part in dimension.split(SUM))
            times = -(-size // tensor.shape[axis])
            tensor = torch.cat([tensor] * max(times, 1), dim=axis).narrow(axis, 0, size)
        feed[name] = tensor.contiguous()
    return feed
