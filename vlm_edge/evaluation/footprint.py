"""Footprint of an engine: bytes on disk, parameters, and multiply-accumulates of one query."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from vlm_edge.core.artifact import folder_size_bytes
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.stage import TaskSpec
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.macs import query_macs
from vlm_edge.evaluation.queries import draw_samples
from vlm_edge.processing.manifest import read_manifest

MACS_SAMPLES = 32
"""Drawn samples, of which the one with the text of median length is counted."""


def footprint(baseline: Path, candidate: Path, task: TaskSpec | None = None) -> list[Measurement]:
    """``size_bytes`` and ``size_ratio`` of the candidate's folder; ``parameters`` and ``macs`` where countable.

    Counts are exact. The folder is what is copied to a device: graphs, tokenizer and manifest. ``macs`` is that of one
    query of the task's test split; without a task it is left out.
    """
    size, baseline_size = folder_size_bytes(candidate), folder_size_bytes(baseline)
    measurements = [_exact("size_bytes", size, "B"), _exact("size_ratio", size / baseline_size, "ratio")]
    count = parameters(candidate)
    if count is not None:
        measurements.append(_exact("parameters", count, ""))
    macs = query_macs(candidate, draw_samples(task, MACS_SAMPLES, seed=0)) if task is not None else None
    if macs is not None:
        measurements.append(_exact("macs", macs, ""))
    return measurements


def parameters(folder: Path) -> int | None:
    """Elements of the weights in the folder's ONNX graphs: initializers, but for scalars, 64-bit integers and booleans.

    None where the graphs are not ONNX, or the package ``onnx`` is not installed, as on a device.

    Raises:
        VlmEdgeError: the folder's manifest or a graph cannot be read.
    """
    files = [folder / component.file for component in read_manifest(folder).components.values()]
    if importlib.util.find_spec("onnx") is None or any(file.suffix != ".onnx" for file in files):
        return None
    return sum(_graph_parameters(file) for file in sorted(set(files)))


def _graph_parameters(file: Path) -> int:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except DecodeError as error:
        raise VlmEdgeError(f"{file}: not an ONNX file, or it is corrupt: {error}", "compile the model again") from error
    indices = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    return sum(math.prod(t.dims) for t in graph.initializer if len(t.dims) > 0 and t.data_type not in indices)


def _exact(metric: str, value: float, unit: str) -> Measurement:
    return Measurement(metric=metric, low=value, value=value, high=value, n=1, unit=unit)
