"""What every engine offers: typed inputs and outputs, and ``infer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlm_edge.processing.manifest import TensorSpec

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
