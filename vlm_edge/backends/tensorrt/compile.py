"""Compile for TensorRT: a plan of each component, built on the device that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_edge.backends.compiling import CompileJob
from vlm_edge.backends.tensorrt.engine import require_tensorrt
from vlm_edge.backends.tensorrt.profiles import Range, dimension_ranges, profile_shapes
from vlm_edge.backends.tensorrt.rules import require_tensorrt_rules
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Component


def compile_component(job: CompileJob) -> tuple[Component, dict[str, Any]]:
    """Build the plan of one component; its row in the manifest, and no facts.

    Raises:
        VlmEdgeError: the graph breaks a rule of TensorRT's, or as :func:`plan_of`, or TensorRT can't run here.
    """
    require_tensorrt_rules(job.graph)
    plan = job.out / f"{job.graph.stem}.plan"
    ranges = dimension_ranges(job.manifest, job.max_batch)
    plan.write_bytes(plan_of(require_tensorrt(), job.graph, job.component, ranges))
    return job.component.model_copy(update={"file": plan.name}), {}


def plan_of(
    trt: Any, onnx_path: Path, component: Component, ranges: Mapping[str, Range], product: str = "TensorRT"
) -> memoryview:
    """The serialized plan of one component.

    Precision is the graph's own: float32 or float16 tensors, and INT8 where Q/DQ pairs say so (symmetric, signed).

    Args:
        trt: the Python bindings of TensorRT or TensorRT-RTX, whose builders have one API.
        product: its name, for messages.

    Raises:
        VlmEdgeError: it can't parse the graph or can't build it. The message holds NVIDIA's own words.
    """
    log = _error_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    compiler = f"{product} {trt.__version__}"
    if not parser.parse_from_file(str(onnx_path)):
        faults = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise VlmEdgeError(f"{onnx_path}: {compiler} can't parse it: {faults}", "export it again")
    config = builder.create_builder_config()
    if shapes := profile_shapes(component, ranges):
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        faults = "; ".join(log.errors)
        raise VlmEdgeError(f"{onnx_path}: {compiler} can't build it: {faults}", "leave the layer it names in float")
    return memoryview(plan)


def _error_log(trt: Any) -> Any:
    """A logger whose ``errors`` are the messages of errors."""

    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(msg)

    return ErrorLog()
