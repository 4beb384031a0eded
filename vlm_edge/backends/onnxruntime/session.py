"""An onnxruntime session's optimized graph, and the time of each of its operators."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from vlm_edge.backends.base import Feed
from vlm_edge.backends.onnxruntime.engine import ORT_ERRORS, OnnxRuntimeOptions, session_options
from vlm_edge.errors import VlmEdgeError
from vlm_edge.explain.facts import Timing

LARGEST_INLINE_BYTES = 65536
"""Larger constants are written to a file beside the session's graph, so that it is read quickly."""
WARM_UPS = 2
_KERNEL_TIME = "_kernel_time"


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
        return {each.name: (_TYPES[each.type], tuple(each.shape)) for each in self._session.get_inputs()}

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


_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
