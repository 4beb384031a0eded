"""Explain an ONNX graph as onnxruntime runs it: fallbacks, leftovers and their causes, time by operator."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from vlm_edge.backends.base import Feed
from vlm_edge.backends.explaining import ExplainJob, generated_feed
from vlm_edge.backends.onnxruntime.engine import DTYPES, ORT_ERRORS, OnnxRuntimeOptions, session_options
from vlm_edge.errors import VlmEdgeError
from vlm_edge.explain.causes import explain_graph
from vlm_edge.explain.facts import Timing, graph_facts
from vlm_edge.explain.view import Graph, Int8View

LARGEST_INLINE_BYTES = 65536
"""Larger constants are written to a file beside the session's graph, so that it is read quickly."""
WARM_UPS = 2
_KERNEL_TIME = "_kernel_time"


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


class LoadedGraph:
    """An ONNX file in a session with the engine's settings; the optimized graph is written to ``scratch``.

    Raises:
        VlmEdgeError: onnxruntime can't load the file.
    """

    def __init__(self, path: Path, *, threads: int, options: Mapping[str, Any], scratch: Path) -> None:
        self._path, self._scratch, self._threads = path, scratch, threads
        settings = session_options(threads, OnnxRuntimeOptions.model_validate(options))
        settings.optimized_model_filepath = str(scratch / "session.onnx")
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "session.data")
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(LARGEST_INLINE_BYTES)
        )
        self._session = _session(path, settings)
        self.model = onnx.load(scratch / "session.onnx", load_external_data=False)

    def inputs(self) -> dict[str, tuple[Any, tuple[int | str | None, ...]]]:
        """Name -> numpy type and shape."""
        return {each.name: (np.dtype(DTYPES[each.type]).type, tuple(each.shape)) for each in self._session.get_inputs()}

    def time(self, feed: Feed, runs: int) -> Timing:
        """Median time of a whole run in the engine's session, and of each node in a profiled one.

        The profiled session runs the optimized graph with numbered nodes and without further optimization, so that
        every event belongs to one node.

        Raises:
            VlmEdgeError: the feed doesn't fit the graph.
        """
        whole_ms = []
        for turn in range(WARM_UPS + runs):
            began = time.perf_counter()
            self._run(self._session, feed)
            if turn >= WARM_UPS:
                whole_ms.append(1e3 * (time.perf_counter() - began))
        return Timing(runs, statistics.median(whole_ms), self._profile(feed, runs))

    def _profile(self, feed: Feed, runs: int) -> dict[int, float]:
        numbered = onnx.ModelProto()
        numbered.CopyFrom(self.model)
        for position, node in enumerate(numbered.graph.node):
            node.name = f"#{position}"
        path = self._scratch / "numbered.onnx"
        path.write_bytes(numbered.SerializeToString())
        settings = session_options(self._threads, OnnxRuntimeOptions(graph_optimization="disabled"))
        settings.enable_profiling = True
        settings.profile_file_prefix = str(self._scratch / "profile")
        session = _session(path, settings)
        for _ in range(WARM_UPS + runs):
            self._run(session, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return median_node_ms(events)

    def _run(self, session: ort.InferenceSession, feed: Feed) -> None:
        try:
            session.run(None, feed)
        except ORT_ERRORS as error:
            raise VlmEdgeError(
                f"{self._path}: onnxruntime: {error}",
                "--no-time explains it without running it; --data or --inputs give real inputs",
            ) from error


def median_node_ms(events: list[dict[str, Any]]) -> dict[int, float]:
    """Median kernel time by node of a profile whose nodes are named ``#0``, ``#1`` ...; warm-ups are left out."""
    times: defaultdict[int, list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.startswith("#") and name.endswith(_KERNEL_TIME):
            times[int(name[1 : -len(_KERNEL_TIME)])].append(event["dur"] / 1e3)
    return {position: statistics.median(each[WARM_UPS:]) for position, each in times.items() if len(each) > WARM_UPS}


def _session(path: Path, settings: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise VlmEdgeError(
            f"{path}: onnxruntime {ort.__version__} can't load it: {error}",
            "the file is corrupt, or an operator is unknown to this version: export or compile it again",
        ) from error
