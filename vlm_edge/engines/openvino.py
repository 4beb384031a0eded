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


class OpenVinoEngine:
    """One model in one infer request."""

    name = "openvino"

    def __init__(
        self, model_path: Path, component: Component, *, threads: int, options: Mapping[str, str | int | float | bool]
    ) -> None:
        import openvino

        core = openvino.Core()
        try:
            compiled = core.compile_model(str(model_path), "CPU", compile_properties(threads, options))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise VlmEdgeError(
                f"{model_path}: OpenVINO {openvino.__version__} can't compile it: {reason}",
                "the file is corrupt, an option is unknown, or an operator is not supported: compile it again",
            ) from error
        names = [next((name for name in component.outputs if name in port.names), "") for port in compiled.outputs]
        if missing := [name for name in component.outputs if name not in names]:
            raise VlmEdgeError(
                f"{model_path}: no output {missing[0]!r}, which the manifest names",
                "the manifest belongs to another file: export or compile it again",
            )
        self._positions = {name: names.index(name) for name in component.outputs}
        self._component = component
        self._path = model_path
        self._request = compiled.create_infer_request()
        self._checker = FeedChecker(component.inputs, str(model_path))

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._component.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._component.outputs

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; outputs are copies, since OpenVINO writes the next run's into the same memory."""
        self._checker.check(feed)
        try:
            results = self._request.infer(feed, share_inputs=True)
        except RuntimeError as error:
            raise VlmEdgeError(f"{self._path}: OpenVINO: {str(error).strip()}") from error
        return {name: results[position] for name, position in self._positions.items()}
