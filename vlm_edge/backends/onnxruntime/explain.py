"""Explain an ONNX graph as onnxruntime runs it: fallbacks, leftovers and their causes, time by operator."""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vlm_edge.backends.explaining import ExplainJob, generated_feed
from vlm_edge.backends.onnxruntime.session import LARGEST_INLINE_BYTES, LoadedGraph
from vlm_edge.errors import VlmEdgeError
from vlm_edge.explain.causes import explain_graph
from vlm_edge.explain.facts import graph_facts
from vlm_edge.explain.proto_graph import Graph
from vlm_edge.explain.view import Int8View


def explain_component(job: ExplainJob) -> dict[str, Any]:
    """Explain one ONNX file: integer and float nodes, Q/DQ left, time by operator, ranked findings; JSON values.

    Raises:
        VlmEdgeError: onnxruntime can't load the file, or the feed doesn't fit it.
    """
    source = Graph(_load(job.file))
    with tempfile.TemporaryDirectory(prefix="vlm-edge-explain-") as scratch:
        loaded = LoadedGraph(job.file, threads=job.threads, options=job.options, scratch=Path(scratch))
        timing = None
        if job.runs:
            feed = generated_feed(loaded.inputs(), job.dims) if job.feed is None else job.feed
            timing = loaded.time(feed, job.runs)
    view = Int8View(
        source=source,
        graph=Graph(loaded.model),
        machine=job.machine,
        isa=job.isa,
        speed=job.speed,
        read=partial(_read, source, job.file.parent),
        equal_weights=equal_weights(source.model, job.file.parent),
        chosen=job.scheme in ("int8", "int8-smooth"),
    )
    findings = explain_graph(view, timing.shares() if timing else None)
    report: dict[str, Any] = {"file": job.file.name, "threads": job.threads}
    if timing:
        report |= {"p50_ms": round(timing.p50_ms, 4), "kernels_ms": round(sum(timing.node_ms.values()), 4)}
        report |= {"runs": timing.runs, "fed": job.fed}
        report["inputs"] = {name: list(value.shape) for name, value in feed.items()}
    return report | graph_facts(view, findings, timing)


def equal_weights(model: onnx.ModelProto, folder: Path) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Names of large initializers of the same type, shape and content, with their size in bytes."""
    groups: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
    sizes: dict[tuple[Any, ...], int] = {}
    for tensor in model.graph.initializer:
        content = _content(tensor, folder)
        if len(content) >= LARGEST_INLINE_BYTES:
            key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest())
            groups[key].append(tensor.name)
            sizes[key] = len(content)
    return tuple((tuple(names), sizes[key]) for key, names in groups.items() if len(names) > 1)


def _load(path: Path) -> onnx.ModelProto:
    """The graph with local functions inlined, its weights left where they are."""
    import onnx.inliner
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise VlmEdgeError(f"{path}: not an ONNX file, or it is corrupt: {error}", "export it again") from error
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _read(graph: Graph, folder: Path, name: str) -> NDArray[Any] | None:
    tensor = graph.initializers.get(name)
    return None if tensor is None else numpy_helper.to_array(tensor, str(folder))


def _content(tensor: onnx.TensorProto, folder: Path) -> bytes:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return bytes(numpy_helper.to_array(tensor, str(folder)).tobytes())
    return bytes(tensor.raw_data)
