"""The interface of engines: typed inputs and outputs, and ``infer``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlm_edge.processing.manifest import Component, TensorSpec

Array = NDArray[Any]
Feed = Mapping[str, Array]


class Engine(Protocol):
    """Runs one component of a pipeline."""

    name: str

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...

    def infer(self, feed: Feed) -> dict[str, np.ndarray[Any, Any]]:
        """Run once. ``feed`` holds every input by name; the result every output by name.

        Raises:
            VlmEdgeError: an input is missing, unknown, or of a wrong dtype or shape: named with what was expected.
        """
        ...


class EngineClass(Protocol):
    """The class of a backend's engines. Its module imports without the packages that the engine needs."""

    def __call__(
        self, model_path: Path, component: Component, *, threads: int, options: Mapping[str, str | int | float | bool]
    ) -> Engine:
        """Load a component's file.

        Raises:
            VlmEdgeError: the file is corrupt, is not the component's, or an option is unknown.
        """
        ...

    @staticmethod
    def unavailable() -> str | None:
        """The reason why the engine can't run on this machine, and the next step; None where it can."""
        ...

    @staticmethod
    def version() -> str:
        """The version of the library that runs it."""
        ...


class Recorder:
    """An engine that hands each run's feed and outputs to ``keep``."""

    def __init__(self, engine: Engine, keep: Callable[[Feed, dict[str, Array]], None]) -> None:
        self.name = engine.name
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._engine = engine
        self._keep = keep

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; see :class:`Engine`."""
        outputs = self._engine.infer(feed)
        self._keep(feed, outputs)
        return outputs
