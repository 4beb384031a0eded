"""Is an exported graph the model? Every component against what torch gave at several sizes."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm_edge.backends.base import Array, Engine, Feed
from vlm_edge.backends.compiling import reference_engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.machine import usable_cpus
from vlm_edge.processing.manifest import Component
from vlm_edge.stages.export_references import Reference

REPORT_HINT = "the graph computes something else than the model: report it with the model's config.json"


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference, and the same relative to the reference's largest magnitude."""

    absolute: float
    relative: float

    @staticmethod
    def between(actual: Array, expected: Array) -> Difference:
        """Infinite where shapes differ or a value is not finite."""
        if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
            return Difference(float("inf"), float("inf"))
        absolute = float(np.abs(actual - expected).max(initial=0.0))
        return Difference(absolute, absolute / max(float(np.abs(expected).max(initial=0.0)), 1e-30))


def load_graph(path: Path, component: Component) -> Engine:
    """One exported file on ONNX Runtime, on every core of this host, its weights left in their file."""
    return reference_engine(path, component, usable_cpus(), {"memory": "small"})


@contextmanager
def new_objects_only() -> Iterator[None]:
    """While open, garbage is looked for among what was made since (gc.freeze): with torch and transformers loaded,
    going through all there is takes 0.4 s, and an export does so 20 times and more."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def return_freed_memory() -> None:
    """Give the system back what was freed, garbage in cycles included: hundreds of MB after a session or a model."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Give the system back what glibc keeps of freed blocks (malloc_trim(3)): a run's largest tensors, many times."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have no such function
    if trim is not None:
        trim(0)


class OneAtATime:
    """Exported files as engines of which one is in memory: asking another drops it. A pipeline asks one after the
    other.

    Args:
        folder: where the files are.
        components: each file's inputs and outputs.
    """

    def __init__(self, folder: Path, components: Mapping[str, Component]) -> None:
        self._folder = folder
        self._loaded: tuple[str, Engine] | None = None
        self.engines: dict[str, Engine] = {
            name: _OneOf(self, name, component) for name, component in components.items()
        }

    def engine(self, name: str, component: Component) -> Engine:
        """The engine of one component, loaded now if it is not the last that was asked."""
        if self._loaded is None or self._loaded[0] != name:
            self.release()
            self._loaded = (name, load_graph(self._folder / component.file, component))
        return self._loaded[1]

    def release(self) -> None:
        """Drop the one that is in memory."""
        self._loaded = None
        return_freed_memory()


class _OneOf:
    """One component of :class:`OneAtATime`."""

    def __init__(self, group: OneAtATime, name: str, component: Component) -> None:
        self.name = name
        self._group = group
        self._component = component
        self.inputs, self.outputs = component.inputs, component.outputs

    def infer(self, feed: Feed) -> dict[str, Array]:
        return self._group.engine(self.name, self._component).infer(feed)


def check_component(name: str, references: Iterable[Reference], graph: Engine, tolerance: float) -> dict[str, float]:
    """The worst difference over all references.

    Returns:
        ``max_abs_error`` and ``max_relative_error``.

    Raises:
        VlmEdgeError: an output differs by more than ``tolerance``, relative to its largest magnitude.
    """
    worst = Difference(0.0, 0.0)
    for reference in references:
        actual = graph.infer(reference.feed)
        for output, expected in reference.outputs.items():
            difference = Difference.between(actual[output], expected)
            if difference.relative > tolerance:
                raise VlmEdgeError(
                    f"{name}: output {output} differs from torch by {difference.relative:.1e} (relative; "
                    f"{difference.absolute:.1e} absolute) at {reference.sizes}; allowed: {tolerance:.0e}",
                    REPORT_HINT,
                )
            worst = max(worst, difference, key=lambda item: item.relative)
        trim_heap()
    return {"max_abs_error": worst.absolute, "max_relative_error": worst.relative}
