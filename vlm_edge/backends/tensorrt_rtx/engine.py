"""TensorRT-RTX: run plans on an NVIDIA RTX GPU, by the network API that it shares with TensorRT.

No GPU was at hand: results are NOT MEASURED until a device measures them.
"""

from __future__ import annotations

from typing import Any

from vlm_edge.backends.tensorrt import cuda_memory
from vlm_edge.backends.tensorrt.engine import TensorRtEngine
from vlm_edge.backends.tensorrt_rtx import wheels


class TensorRtxEngine(TensorRtEngine):
    """One plan in one execution context; see :class:`vlm_edge.backends.tensorrt.engine.TensorRtEngine`."""

    name = "tensorrt-rtx"

    @staticmethod
    def bindings() -> Any:
        """NVIDIA's Python module; see :func:`vlm_edge.backends.tensorrt_rtx.wheels.bindings`."""
        return wheels.bindings()

    @staticmethod
    def unavailable() -> str | None:
        """The reason why plans can't run here, or None; they may be built all the same."""
        if (reason := wheels.builder_missing()) is not None:
            return reason
        missing = cuda_memory.driver_missing()
        return None if missing is None else f"{missing}: plans are built here, and run on the device"

    @staticmethod
    def version() -> str:
        """That of the bindings."""
        return str(wheels.bindings().__version__)
