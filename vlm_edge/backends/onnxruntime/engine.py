"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from vlm_edge.backends.base import Array, Feed
from vlm_edge.backends.checks import EngineOptions, check_feed, check_signature, read_options
from vlm_edge.errors import VlmEdgeError
from vlm_edge.machine import usable_cpus
from vlm_edge.processing.manifest import Component

ORT_ERRORS: tuple[type[BaseException], ...] = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
)
"""Exceptions that onnxruntime raises; its own classes share no base but Exception."""

_GRAPH_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("int64", "int32", "bool", "uint8", "int8")},
}


class OnnxRuntimeOptions(EngineOptions):
    """Session options, as they stand in the manifest.

    ``graph_optimization``: how far the session rewrites the graph when it loads it; an offline-optimized file needs
    none. ``spinning``: what intra-op threads do while they wait: ``during_run`` spins inside a run and stops at its
    end, so that one component's threads don't slow the next component's down; ``always`` is onnxruntime's default.
    ``memory``: ``small`` leaves weights that lie beside the graph in the mapped file instead of copying them in the
    layout that kernels like best, and gives back what a run took (onnxruntime's arena keeps it).
    """

    graph_optimization: Literal["disabled", "basic", "extended", "all"] = "all"
    spinning: Literal["never", "during_run", "always"] = "during_run"
    memory: Literal["fast", "small"] = "fast"


def session_options(threads: int, options: OnnxRuntimeOptions) -> ort.SessionOptions:
    """Sequential execution on ``threads`` intra-op threads (on no more than there are usable CPUs), no log."""
    session = ort.SessionOptions()
    session.intra_op_num_threads = min(threads, usable_cpus())
    session.inter_op_num_threads = 1
    session.log_severity_level = 4  # what goes wrong is raised
    session.graph_optimization_level = _GRAPH_LEVELS[options.graph_optimization]
    session.add_session_config_entry("session.intra_op.allow_spinning", "0" if options.spinning == "never" else "1")
    session.add_session_config_entry("session.force_spinning_stop", "1" if options.spinning == "during_run" else "0")
    if options.memory == "small":
        session.enable_cpu_mem_arena = session.enable_mem_pattern = False
        session.add_session_config_entry("session.disable_prepacking", "1")
    return session


class OnnxRuntimeEngine:
    """One ONNX file in one session.

    The feed is not checked before a run: onnxruntime does that, and when it refuses, the feed is looked through for
    the input to name. So the path that is taken a thousand times a second pays nothing for the message.
    """

    name = "onnxruntime"

    def __init__(
        self, model_path: Path, component: Component, *, threads: int, options: Mapping[str, str | int | float | bool]
    ) -> None:
        settings = read_options("onnxruntime", OnnxRuntimeOptions, options)
        try:
            self._session = ort.InferenceSession(
                str(model_path), session_options(threads, settings), providers=["CPUExecutionProvider"]
            )
        except ORT_ERRORS as error:
            hint = "the file is corrupt or of a newer format: export or compile it again"
            if isinstance(error, ort_errors.NotImplemented):
                hint = "an operator has no kernel here; bfloat16 graphs are for TensorRT: export with another dtype"
            raise VlmEdgeError(f"{model_path}: onnxruntime {ort.__version__} can't load it: {error}", hint) from error
        self._path = model_path
        self.inputs, self.outputs = component.inputs, component.outputs
        self._output_names = list(component.outputs)
        inputs = {each.name: (DTYPES.get(each.type), each.shape or None) for each in self._session.get_inputs()}
        check_signature(model_path, component, inputs, [output.name for output in self._session.get_outputs()])

    @staticmethod
    def unavailable() -> str | None:
        """None: onnxruntime is a dependency of the package."""
        return None

    @staticmethod
    def version() -> str:
        """That of the package onnxruntime."""
        return str(ort.__version__)

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; see :class:`vlm_edge.backends.base.Engine`."""
        try:
            values: list[Any] = self._session.run(self._output_names, feed)
        except ORT_ERRORS as error:
            check_feed(feed, self.inputs, str(self._path))
            raise VlmEdgeError(f"{self._path}: onnxruntime: {error}") from error
        return dict(zip(self._output_names, values, strict=True))
