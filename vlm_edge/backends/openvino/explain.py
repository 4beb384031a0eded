"""Explain a model as OpenVINO's CPU plug-in runs it: its kernels, their precision and time.

The compiled model's runtime model names every kernel (``layerType``, ``primitiveType`` such as brgemm_avx512_i8, the
last part of which is the precision), and the request's profile its time:
https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.backends.base import Feed
from vlm_edge.backends.explaining import ExplainJob, generated_feed
from vlm_edge.backends.openvino.engine import compile_properties
from vlm_edge.backends.openvino.fixed_shapes import as_fixed
from vlm_edge.errors import VlmEdgeError
from vlm_edge.explain.compiled import KernelCause, kernel_facts

_CONSTANT = frozenset({"Input", "Const", "Output", "Result", "Parameter"})
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "GroupConvolution", "Deconvolution")
_INTEGER = frozenset({"i8", "u8", "i4", "u4"})
_WARM_UPS = 2


@dataclass(frozen=True)
class Kernel:
    """One operation of the compiled model; ``precision`` as OpenVINO writes it (f32, i8), ms its median time."""

    name: str
    type: str
    primitive: str
    precision: str
    ms: float

    @property
    def is_product(self) -> bool:
        return self.type.startswith(_PRODUCTS)

    @property
    def kind(self) -> str:
        if self.is_product:
            return "integer" if self.precision in _INTEGER else "float product"
        if self.type in ("FakeQuantize", "Convert"):
            return "activation Q/DQ" if self.type == "FakeQuantize" else "conversion"
        return "layout" if self.type in ("Reorder", "Transpose", "Reshape", "Concatenation") else "other float"


CAUSES: tuple[KernelCause, ...] = (
    KernelCause(
        "float-weights",
        "products in float",
        lambda kernel: kernel.is_product and kernel.kind == "float product" and kernel.type != "MatMul",
        0.67,
        "their data or weights are not quantized, or in a form that the plug-in's low-precision pass skips",
        "`quantize: {components: {NAME: int8}}` for an OpenVINO target",
    ),
    KernelCause(
        "unfused-qdq",
        "FakeQuantize run on its own",
        lambda kernel: kernel.type == "FakeQuantize",
        1.0,
        "a quantizer that was not fused into the kernel before it",
        "exclude the operator after it from quantization",
    ),
    KernelCause(
        "layout-transposes",
        "reorders between layouts",
        lambda kernel: kernel.type == "Reorder",
        1.0,
        "kernels of different layouts follow each other",
        "keep neighbouring convolutions all in INT8, or all in float",
    ),
)


def explain_component(job: ExplainJob) -> dict[str, Any]:
    """The JSON values of an ONNX graph's explanation, as far as OpenVINO's API gives them.

    With a ``component`` and a ``feed`` the model gets the shapes that the engine would fix for it.

    Raises:
        VlmEdgeError: OpenVINO can't compile the model, or the feed doesn't fit it.
    """
    import openvino

    feed = job.feed
    try:
        properties = compile_properties(job.threads, job.options) | {"PERF_COUNT": True}
        core = openvino.Core()
        model = core.read_model(str(job.file))
        if job.component is not None and feed is not None and (filled := as_fixed(job.component, feed)) is not None:
            feed = filled
            model.reshape({name: list(array.shape) for name, array in feed.items()})
        compiled = core.compile_model(model, "CPU", properties)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise VlmEdgeError(f"{job.file}: OpenVINO can't compile it: {reason}", "compile the model again") from error
    report: dict[str, Any] = {"file": job.file.name, "threads": job.threads}
    node_ms: dict[str, float] | None = None
    if job.runs:
        values = generated_feed(_inputs(compiled), job.dims) if feed is None else feed
        p50_ms, node_ms = _timed(job.file, compiled, values, job.runs)
        report |= {"p50_ms": round(p50_ms, 4), "runs": job.runs, "kernels_ms": round(sum(node_ms.values()), 4)}
        report |= {"inputs": {name: list(value.shape) for name, value in values.items()}, "fed": job.fed}
    return report | kernel_facts(kernels_of(compiled, node_ms), CAUSES, timed=job.runs > 0)


def kernels_of(compiled: Any, node_ms: Mapping[str, float] | None) -> list[Kernel]:
    """The operations of the compiled model; with times, only those that took any."""
    found = []
    for operator in compiled.get_runtime_model().get_ordered_ops():
        info = operator.get_rt_info()
        facts = {key: str(info[key].astype(str)) for key in ("layerType", "primitiveType")}
        name = operator.get_friendly_name()
        if facts["layerType"] in _CONSTANT or (node_ms is not None and name not in node_ms):
            continue
        precision = facts["primitiveType"].rpartition("_")[2].lower()
        ms = node_ms[name] if node_ms is not None else 0.0
        found.append(Kernel(name, facts["layerType"], facts["primitiveType"], precision, ms))
    return found


def _timed(path: Path, compiled: Any, feed: Feed, runs: int) -> tuple[float, dict[str, float]]:
    """Median ms of a run, and of each kernel that ran by its name."""
    request = compiled.create_infer_request()
    times: defaultdict[str, list[float]] = defaultdict(list)
    whole_ms = []
    for turn in range(_WARM_UPS + runs):
        began = time.perf_counter()
        try:
            request.infer(feed)
        except RuntimeError as error:
            raise VlmEdgeError(f"{path}: OpenVINO: {str(error).strip()}", "give true inputs with --data") from error
        if turn < _WARM_UPS:
            continue
        whole_ms.append(1e3 * (time.perf_counter() - began))
        for row in request.get_profiling_info():
            if str(row.status).endswith("EXECUTED"):
                times[row.node_name].append(row.real_time.total_seconds() * 1e3)
    return statistics.median(whole_ms), {name: statistics.median(each) for name, each in times.items()}


def _inputs(compiled: Any) -> dict[str, tuple[Any, tuple[int | str | None, ...]]]:
    """Name -> numpy type and shape; a free dimension has no name here."""
    found: dict[str, tuple[Any, tuple[int | str | None, ...]]] = {}
    for port in compiled.inputs:
        shape = tuple(dim.get_length() if dim.is_static else None for dim in port.get_partial_shape())
        found[port.get_any_name()] = (np.dtype(port.get_element_type().to_dtype()).type, shape)
    return found
