"""OpenVINO on the CPU, as a second engine: from its IR (``.xml`` and ``.bin``) or straight from ONNX."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_edge.engines.base import Array, Feed
from vlm_edge.engines.feed import FeedChecker
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Component, TensorSpec


def unavailable() -> str | None:
    """Why OpenVINO can't run here, or None."""
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed; install vlm-edge[openvino]"
    return None


def compile_properties(threads: int, options: Mapping[str, str | int | float | bool]) -> dict[str, Any]:
    """OpenVINO properties: one stream for latency; ``options`` are added and may replace any of them.

    FP32 stays FP32: by default the CPU plug-in may run float graphs in bfloat16 where the chip has it.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        **options,
    }


def computes_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def write_ir(onnx_path: Path, xml_path: Path) -> None:
    """Convert an ONNX file to OpenVINO's IR: ``xml_path`` and the weights beside it, at the graph's own precision.

    Raises:
        VlmEdgeError: OpenVINO can't read the graph.
    """
    import openvino

    try:
        model = openvino.Core().read_model(str(onnx_path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise VlmEdgeError(
            f"{onnx_path}: OpenVINO {openvino.__version__} can't read it: {reason}",
            "an operator is onnxruntime's own or not supported: quantize and compile for this target again",
        ) from error
    for index, operator in enumerate(model.get_ordered_ops()):
        operator.set_friendly_name(f"n{index}")  # OpenVINO's own names count on through the process
    openvino.save_model(model, str(xml_path), compress_to_fp16=False)
    xml_path.write_text(re.sub(r">\s+<", "><", xml_path.read_text(encoding="utf-8")), encoding="utf-8")


BATCH_NAMES = frozenset({"batch", "images"})
"""What the families call a batch where nothing else of a graph varies; `groups` (of an image's patches) is none."""


def varies_by_batch(component: Component) -> bool:
    """Whether all inputs' dynamic dimensions are one, the batch."""
    names = {size for spec in component.inputs.values() for size in spec.shape if isinstance(size, str)}
    return len(names) == 1 and names <= BATCH_NAMES


class OpenVinoEngine:
    """One model, as it is for any shape, and once more for batch 1 where the batch is all that varies.

    With every dimension known OpenVINO plans memory and layouts ahead: a tenth of the time on towers of 16 ms. The one
    for batch 1 is compiled when the engine is loaded, since that is the usual size, the other one when it is first
    needed; where there is one alone, it is compiled at once.
    """

    name = "openvino"

    def __init__(
        self, model_path: Path, component: Component, *, threads: int, options: Mapping[str, str | int | float | bool]
    ) -> None:
        import openvino

        self._core = openvino.Core()
        self._path = model_path
        self._component = component
        self._properties = compile_properties(threads, options)
        self._checker = FeedChecker(component.inputs, str(model_path))
        self._single = varies_by_batch(component)
        self._requests: dict[bool, Any] = {}
        self._positions: dict[str, int] = {}
        self._request(self._single)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._component.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._component.outputs

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; outputs are copies, since OpenVINO writes the next run's into the same memory."""
        self._checker.check(feed)
        request = self._request(self._single and self._is_single(feed))
        try:
            results = request.infer(feed, share_inputs=True)
        except RuntimeError as error:
            raise VlmEdgeError(f"{self._path}: OpenVINO: {str(error).strip()}") from error
        return {name: results[position] for name, position in self._positions.items()}

    def _is_single(self, feed: Feed) -> bool:
        return all(
            actual == 1
            for name, spec in self._component.inputs.items()
            for size, actual in zip(spec.shape, feed[name].shape, strict=True)
            if isinstance(size, str)
        )

    def _request(self, single: bool) -> Any:
        """The infer request for batch 1 or for any shape, compiled at the first call."""
        if single not in self._requests:
            self._requests[single] = self._compiled(single).create_infer_request()
        return self._requests[single]

    def _compiled(self, single: bool) -> Any:
        import openvino

        try:
            model = self._core.read_model(str(self._path))
            if single:
                model.reshape({name: _single_shape(spec) for name, spec in self._component.inputs.items()})
            compiled = self._core.compile_model(model, "CPU", self._properties)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise VlmEdgeError(
                f"{self._path}: OpenVINO {openvino.__version__} can't compile it: {reason}",
                "the file is corrupt, an option is unknown, or an operator is not supported: compile it again",
            ) from error
        wanted = list(self._component.outputs)
        names = [next((name for name in wanted if name in port.names), "") for port in compiled.outputs]
        if missing := [name for name in wanted if name not in names]:
            raise VlmEdgeError(
                f"{self._path}: no output {missing[0]!r}, which the manifest names",
                "the manifest belongs to another file: export or compile it again",
            )
        self._positions = {name: names.index(name) for name in wanted}
        return compiled


def _single_shape(spec: TensorSpec) -> list[int]:
    return [1 if isinstance(size, str) else size for size in spec.shape]
