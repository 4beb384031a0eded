"""OpenVINO on the CPU, as a second engine: from its IR (``.xml`` and ``.bin``) or straight from ONNX."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from vlm_edge.backends.base import Array, Feed
from vlm_edge.backends.checks import EngineOptions, FeedChecker, check_signature, read_options
from vlm_edge.backends.openvino.fixed_shapes import (
    FilledInputs,
    dimensions,
    fillable,
    fitting,
    fixed_sizes,
    shape_of,
    sizes_of,
)
from vlm_edge.errors import VlmEdgeError
from vlm_edge.machine import usable_cpus
from vlm_edge.processing.manifest import Component

_DTYPES = {
    **{"f32": "float32", "f16": "float16", "boolean": "bool"},
    **{"i64": "int64", "i32": "int32", "u8": "uint8", "i8": "int8"},
}


class OpenVinoOptions(EngineOptions):
    """OpenVINO's properties that a manifest may set; what is left out is as :func:`compile_properties` has it."""

    INFERENCE_PRECISION_HINT: Literal["f32", "bf16"] | None = None
    NUM_STREAMS: int | None = Field(default=None, ge=1, le=64)
    DYNAMIC_QUANTIZATION_GROUP_SIZE: int | None = Field(default=None, ge=0, le=65536)


def compile_properties(threads: int, options: Mapping[str, str | int | float | bool]) -> dict[str, Any]:
    """OpenVINO properties: one stream for latency; ``options`` are added and may replace any of them.

    FP32 stays FP32: by default the CPU plug-in may run float graphs in bfloat16 where the chip has it.

    Raises:
        VlmEdgeError: an option is none of :class:`OpenVinoOptions`.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": min(threads, usable_cpus()),
        "INFERENCE_PRECISION_HINT": "f32",
        **read_options("openvino", OpenVinoOptions, options).model_dump(exclude_none=True),
    }


def known(feed: Feed) -> dict[str, Array]:
    """The feed as OpenVINO's Python knows its dtypes: of NumPy's two names for int64, onnxruntime's outputs have the
    one that it takes for another type."""
    return {name: array.view(np.int64) if array.dtype.char == "q" else array for name, array in feed.items()}


class OpenVinoEngine:
    """One model, as it is for any shape, and once more with all sizes fixed where the component has usual ones
    (:mod:`vlm_edge.backends.openvino.fixed_shapes`).

    A tower is compiled for batch 1 when the engine is loaded, and for any shape when that is first needed. A decoder is
    compiled when it is first fed, since only the feed tells how long is what it reads, and again where a cache of a
    fixed length has to grow. A model without usual sizes is compiled at once.
    """

    name = "openvino"

    def __init__(
        self, model_path: Path, component: Component, *, threads: int, options: Mapping[str, str | int | float | bool]
    ) -> None:
        import openvino

        self._core = openvino.Core()
        self._path = model_path
        self._component = component
        self.inputs, self.outputs = component.inputs, component.outputs
        self._properties = compile_properties(threads, options)
        self._checker = FeedChecker(component.inputs, str(model_path))
        self._dimensions = dimensions(component)
        self._filled = fillable(component)
        self._positions: dict[str, int] = {}
        self._any: Any = None
        self._fixed: Any = None
        self._sizes = fixed_sizes(component)
        if self._filled:
            self._read()  # so that a corrupt file is told now
        elif self._sizes is None:
            self._any = self._request(None)
        else:
            self._fix(self._sizes)

    @staticmethod
    def unavailable() -> str | None:
        """The reason why OpenVINO can't run here, or None."""
        if importlib.util.find_spec("openvino") is None:
            return "the package openvino is not installed; install vlm-edge[openvino]"
        return None

    @staticmethod
    def version() -> str:
        """That of the package openvino."""
        import openvino

        return str(openvino.__version__)

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; outputs are copies, since OpenVINO writes the next run's into the same memory."""
        self._checker.check(feed)
        try:
            if self._sizes is not None:
                actual = sizes_of(self._dimensions, feed)
                sizes = fitting(self._sizes, actual, self._filled)
                if sizes is not None:
                    return self._infer_fixed(feed, actual, sizes)
            if self._any is None:
                self._any = self._request(None)
            results = self._any.infer(known(feed), share_inputs=True)
        except RuntimeError as error:
            raise VlmEdgeError(f"{self._path}: OpenVINO: {str(error).strip()}") from error
        return {name: results[position] for name, position in self._positions.items()}

    def _infer_fixed(self, feed: Feed, actual: Mapping[str, int], sizes: dict[str, int]) -> dict[str, Array]:
        if self._fixed is None or sizes != self._sizes:
            self._fix(sizes)
        rest = known(self._room.fill(feed, actual))
        results = list(self._fixed.infer(rest, share_inputs=True, share_outputs=True).values())
        return {name: self._room.cut(name, results[at], actual) for name, at in self._positions.items()}

    def _fix(self, sizes: dict[str, int]) -> None:
        """Compile the model for ``sizes``, in place of the one for others."""
        import openvino

        room, request = FilledInputs(self._component, sizes, self._filled), self._request(sizes)
        for name, array in room.arrays.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self._room, self._fixed, self._sizes = room, request, sizes

    def _request(self, sizes: Mapping[str, int] | None) -> Any:
        """A new infer request, for ``sizes`` or for any."""
        model = self._read()
        try:
            if sizes is not None:
                model.reshape({name: shape_of(spec, sizes) for name, spec in self._component.inputs.items()})
            compiled = self._core.compile_model(model, "CPU", self._properties)
        except RuntimeError as error:
            raise self._refused(error) from error
        self._positions = self._places(compiled)
        return compiled.create_infer_request()

    def _read(self) -> Any:
        """The model of the file, which is the one that the manifest's row describes."""
        try:
            model = self._core.read_model(str(self._path))
        except RuntimeError as error:
            raise self._refused(error) from error
        inputs = {}
        for port in model.inputs:
            name = next((name for name in self.inputs if name in port.names), str(port.any_name))
            sizes = port.partial_shape
            shape = [size.get_length() if size.is_static else None for size in sizes] if sizes.rank.is_static else None
            inputs[name] = (_DTYPES.get(port.element_type.get_type_name()), shape)
        check_signature(self._path, self._component, inputs, [name for port in model.outputs for name in port.names])
        return model

    def _refused(self, error: RuntimeError) -> VlmEdgeError:
        import openvino

        reason = str(error).strip().splitlines()[-1]
        return VlmEdgeError(
            f"{self._path}: OpenVINO {openvino.__version__} can't compile it: {reason}",
            "the file is corrupt, an option is unknown, or an operator is not supported: compile it again",
        )

    def _places(self, model: Any) -> dict[str, int]:
        """Positions of the manifest's outputs among the model's."""
        names = [next((name for name in self.outputs if name in port.names), "") for port in model.outputs]
        return {name: names.index(name) for name in self.outputs}
