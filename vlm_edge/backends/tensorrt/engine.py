"""TensorRT 10 and 11: build plans from strongly typed ONNX with explicit Q/DQ, and run them.

Written to NVIDIA's Python API of TensorRT 11 (a strongly typed network is the only kind there; 10 takes the flag), and
importable without tensorrt. Plans belong to one GPU model and one TensorRT version: they are built on the device.
Nothing here was run where this was written, since libnvinfer is not on PyPI: results are NOT MEASURED until a device
measures them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.backends.base import Array, Feed
from vlm_edge.backends.checks import EngineOptions, FeedChecker, Signature, read_options
from vlm_edge.backends.tensorrt import cuda_memory
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Component

OLDEST = 10
"""Major version."""


def require_tensorrt() -> Any:
    """The tensorrt module.

    Raises:
        VlmEdgeError: it can't run here.
    """
    if (reason := TensorRtEngine.unavailable()) is not None:
        raise VlmEdgeError(f"TensorRT: {reason}", "docs/jetson.md says what a Jetson needs")
    return importlib.import_module("tensorrt")


class TensorRtEngine:
    """One plan in one execution context, inputs and outputs copied to and from the GPU."""

    name = "tensorrt"

    def __init__(
        self,
        model_path: Path,
        component: Component,
        *,
        threads: int,  # noqa: ARG002
        options: Mapping[str, str | int | float | bool],
    ) -> None:
        trt = self.bindings()
        read_options(self.name, EngineOptions, options)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(model_path.read_bytes())
        if self._engine is None:
            raise VlmEdgeError(
                f"{model_path}: TensorRT {trt.__version__} can't load this plan",
                "build it on this device: a plan belongs to one GPU model and one TensorRT version",
            )
        self._context = self._engine.create_execution_context()
        self._stream = cuda_memory.Stream(cuda_memory.load_cudart())
        self.inputs, self.outputs = component.inputs, component.outputs
        self._path = model_path
        self._checker = FeedChecker(component.inputs, str(model_path))
        self._shaped: Signature | None = None

    @staticmethod
    def bindings() -> Any:
        """NVIDIA's Python module; see :func:`require_tensorrt`."""
        return require_tensorrt()

    @staticmethod
    def unavailable() -> str | None:
        """The reason why TensorRT can't run here, or None."""
        try:
            version = str(importlib.import_module("tensorrt").__version__)
        except ModuleNotFoundError:
            reason: str | None = "the Python package tensorrt is not installed"
        except (ImportError, OSError) as error:  # the bindings without libnvinfer raise either
            reason = f"the Python package tensorrt can't load its libraries: {error}"
        else:
            reason = cuda_memory.driver_missing()
            if int(version.split(".")[0]) < OLDEST:
                reason = f"TensorRT is {version}, and {OLDEST}.0 is the oldest that takes strongly typed graphs"
        return (
            None if reason is None else f"{reason}; a TensorRT engine is built and measured on the device that runs it"
        )

    @staticmethod
    def version() -> str:
        """That of the package tensorrt."""
        return str(require_tensorrt().__version__)

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; see :class:`vlm_edge.backends.base.Engine`."""
        signature = self._checker.check(feed)
        arrays = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        for name, array in arrays.items():
            address = self._stream.buffer(name, array.nbytes)
            self._context.set_tensor_address(name, address)
            self._stream.upload(array, address)
        if signature != self._shaped:
            self._shaped = None  # a shape that is refused leaves the context between two signatures
            self._set_shapes(arrays)
            self._shaped = signature
        results = {}
        for name, spec in self.outputs.items():
            result = np.empty(tuple(self._context.get_tensor_shape(name)), spec.dtype)
            self._context.set_tensor_address(name, self._stream.buffer(name, result.nbytes))
            results[name] = result
        if not self._context.execute_async_v3(self._stream.handle):
            raise VlmEdgeError(f"{self._path}: TensorRT failed to run it", "read its log above")
        for name, result in results.items():
            self._stream.download(self._stream.buffer(name, result.nbytes), result)
        self._stream.synchronize()
        return results

    def _set_shapes(self, arrays: Mapping[str, Array]) -> None:
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, array.shape):
                limits = self._engine.get_tensor_profile_shape(name, 0)
                raise VlmEdgeError(
                    f"{self._path}: input {name!r}: {list(array.shape)} is outside the plan's profile {limits}",
                    "compile with a wider range",
                )
        if unknown := self._context.infer_shapes():
            raise VlmEdgeError(f"{self._path}: TensorRT can't infer the shapes of {', '.join(unknown)}")
