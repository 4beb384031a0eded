"""Footprint of an engine: bytes on disk, parameters, and multiply-accumulates of one query."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from vlm_edge.backends.base import Engine, Feed, Recorder
from vlm_edge.core.artifact import folder_size_bytes
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.stage import TaskSpec
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.queries import Samples, draw_samples, queries_of, read_images
from vlm_edge.processing.manifest import PipelineManifest, read_manifest
from vlm_edge.runtime.pipeline import build_pipeline, load_engines

MACS_SAMPLES = 32
"""Drawn samples, of which the one with the text of median length is counted."""


def footprint(baseline: Path, candidate: Path, task: TaskSpec | None = None) -> list[Measurement]:
    """``size_bytes`` and ``size_ratio`` of the candidate's folder; ``parameters`` and ``macs`` where countable.

    Counts are exact. The folder is what is copied to a device: graphs, tokenizer and manifest. ``macs`` is that of one
    query of the task's test split; without a task it is left out.
    """
    size, baseline_size = folder_size_bytes(candidate), folder_size_bytes(baseline)
    measurements = [_exact("size_bytes", size, "B"), _exact("size_ratio", size / baseline_size, "ratio")]
    macs = query_macs(candidate, draw_samples(task, MACS_SAMPLES, seed=0)) if task is not None else None
    counts = {"parameters": parameters(candidate), "macs": macs}
    return [*measurements, *(_exact(metric, count, "") for metric, count in counts.items() if count is not None)]


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


def recorded_engines(
    folder: Path, manifest: PipelineManifest, threads: int
) -> tuple[dict[str, Engine], dict[str, list[Feed]]]:
    """A folder's engines by component, and the lists in which they keep their feeds, in order.

    Raises:
        VlmEdgeError: an engine can't be loaded.
    """
    feeds: dict[str, list[Feed]] = {name: [] for name in manifest.components}

    def recorder(name: str, engine: Engine) -> Engine:
        return Recorder(engine, lambda feed, _: feeds[name].append(dict(feed)))

    engines = load_engines(folder, manifest, threads=threads)
    return {name: recorder(name, engine) for name, engine in engines.items()}, feeds


def query_macs(folder: Path, samples: Samples) -> int | None:
    """Multiply-accumulates of the query whose text is of median length, at batch 1, over all runs of all components.

    The query is answered once, and each component's graph run again on what it was fed then, to read every shape off
    the tensors. Labels that are embedded once for all queries are left out. None where it can't be counted: the graphs
    are not ONNX, the package ``onnx_ir`` is not installed, or an operator multiplies in a way that has no formula.

    Raises:
        VlmEdgeError: the engine can't be loaded, none of the images can be read, or a graph is corrupt.
    """
    manifest = read_manifest(folder)
    files = {name: folder / component.file for name, component in manifest.components.items()}
    if importlib.util.find_spec("onnx_ir") is None or any(file.suffix != ".onnx" for file in files.values()):
        return None
    engines, feeds = recorded_engines(folder, manifest, 1)
    images = sorted(read_images(samples), key=lambda pair: len(pair[1]))
    query = queries_of(build_pipeline(manifest, engines, folder), [images[len(images) // 2]], samples)[0]
    query()  # labels are embedded now
    for each in feeds.values():
        each.clear()
    query()
    from vlm_edge.graphs.ops import UncountedOperator
    from vlm_edge.graphs.shapes import multiply_adds

    total = 0
    for name, file in files.items():
        try:
            total += multiply_adds(file, feeds[name])
        except UncountedOperator:
            return None
    return total
