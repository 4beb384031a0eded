"""Build a plan from a strongly typed ONNX file, with the builder of TensorRT or TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import write_atomically

Shapes = Mapping[str, Sequence[Sequence[int]]]
"""The smallest, the usual and the largest shape of each input with a dynamic dimension."""


def plan_of(
    trt: Any,
    onnx_path: Path,
    shapes: Shapes,
    product: str = "TensorRT",
    *,
    timing_cache: Path | None = None,
    capabilities: Sequence[str] = (),
) -> memoryview:
    """The serialized plan of one component.

    Precision is the graph's own: float32 or float16 tensors, and INT8 where Q/DQ pairs say so (symmetric, signed).

    Args:
        trt: the Python bindings of TensorRT or TensorRT-RTX, whose builders have one API.
        shapes: of the optimization profile.
        product: its name, for messages.
        timing_cache: a file of the builder's measurements, read where it is there, and written.
        capabilities: compute capabilities to build for, such as ``8.6`` (TensorRT-RTX); none: the builder's default.

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
    if shapes:
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(profile)
    if capabilities:
        _set_capabilities(trt, config, capabilities, compiler)
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)  # another GPU's, or another version's
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        faults = "; ".join(log.errors)
        raise VlmEdgeError(f"{onnx_path}: {compiler} can't build it: {faults}", "leave the layer it names in float")
    if timing_cache is not None and (measured := config.get_timing_cache()) is not None:
        with suppress(OSError, VlmEdgeError):  # the next build measures again
            write_atomically(timing_cache, bytes(measured.serialize()))
    return memoryview(plan)


def _set_capabilities(trt: Any, config: Any, capabilities: Sequence[str], compiler: str) -> None:
    known = {
        name[2:-1] + "." + name[-1]: value
        for name, value in trt.ComputeCapability.__members__.items()
        if name[:2] == "SM"
    }
    if unknown := [each for each in capabilities if each not in known]:
        raise VlmEdgeError(
            f"target: compute_capabilities: {compiler} builds for no {unknown[0]!r}", f"it has {', '.join(known)}"
        )
    config.num_compute_capabilities = len(capabilities)
    for index, each in enumerate(capabilities):
        if not config.set_compute_capability(known[each], index):
            raise VlmEdgeError(f"target: compute_capabilities: {compiler} takes no {each!r}", "name it once")


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
