"""The process that one engine's latency is measured in: ``python -m vlm_edge.evaluation.latency_worker``.

It reads one JSON request a line on stdin and answers each with one JSON line:

- ``load`` (folder, threads, samples, cpus): pin to ``cpus`` (unless null) and load; the time that it took.
- ``run`` (start, count): that many queries from sample ``start`` on, round and round; the time of each, and whether
  the system took a CPU away from this process meanwhile to run something else (an involuntary context switch).
- ``profile`` (start, count): the same with clocks around the engines; the time in each component.
- ``batch`` (size, seconds): batches of ``size`` images until the seconds are over, two at least; the time of each.
- ``memory``: the peak.

It sleeps in a read between requests, and ends when stdin ends. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from vlm_edge.backends.base import Array, Engine, Feed
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.queries import queries_of, read_images
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime.capabilities import Batch, zero_shot
from vlm_edge.runtime.pipeline import build_pipeline, load_engines

PREPROCESSING, OTHER = "preprocessing", "other"


class ClockedEngine:
    """An engine that adds up the time of its runs, in ms, and keeps when the first one began."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.spent_ms = 0.0
        self.began_ns: int | None = None

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; see :class:`vlm_edge.backends.base.Engine`."""
        began = time.perf_counter_ns()
        outputs = self._engine.infer(feed)
        self.spent_ms += (time.perf_counter_ns() - began) / 1e6
        if self.began_ns is None:
            self.began_ns = began
        return outputs

    def reset(self) -> None:
        self.spent_ms, self.began_ns = 0.0, None


def profile_query(query: Callable[[], object], engines: Mapping[str, ClockedEngine]) -> dict[str, float]:
    """Milliseconds of one query in each component (all its runs together), ``preprocessing`` and ``other``.

    ``preprocessing`` is everything before the first run of an engine: the image's resize, crop and normalisation (and
    a tokenizer that runs before it). ``other`` is the rest: tokenizing between runs, the decoding loop, Python.
    """
    for engine in engines.values():
        engine.reset()
    began = time.perf_counter_ns()
    query()
    whole_ms = (time.perf_counter_ns() - began) / 1e6
    spent = {name: engine.spent_ms for name, engine in engines.items()}
    first = min((engine.began_ns for engine in engines.values() if engine.began_ns is not None), default=began)
    spent[PREPROCESSING] = (first - began) / 1e6
    spent[OTHER] = max(0.0, whole_ms - sum(spent.values()))
    return spent


class Worker:
    """Answers requests; one engine, loaded once."""

    def __init__(self) -> None:
        self._queries: list[Callable[[], object]] = []

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request -> its reply.

        Raises:
            VlmEdgeError: the engine cannot be loaded, none of the images can be read, or a query fails.
        """
        if request["do"] == "load":
            return self._load(Path(request["folder"]), request["threads"], request["samples"], request["cpus"])
        if request["do"] == "run":
            return self._run(request["start"], request["count"])
        if request["do"] == "profile":
            return {"components": self._profile(request["start"], request["count"])}
        if request["do"] == "batch":
            return {"ms": self._batches(request["size"], request["seconds"])}
        return {"peak_rss_mb": peak_rss_mb()}

    def _load(self, folder: Path, threads: int, samples: dict[str, Any], cpus: list[int] | None) -> dict[str, Any]:
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        self._images, self._samples, self._folder = read_images(samples), samples, folder
        before = time.perf_counter_ns()
        self._manifest = read_manifest(folder)
        self._engines = load_engines(folder, self._manifest, threads=threads)
        self._pipeline = build_pipeline(self._manifest, self._engines, folder)
        loaded_ms = (time.perf_counter_ns() - before) / 1e6
        self._queries = queries_of(self._pipeline, self._images, samples)
        return {"queries": len(self._queries), "ms": loaded_ms}

    def _run(self, start: int, count: int) -> dict[str, Any]:
        clock, queries, usage, process = time.perf_counter_ns, self._queries, resource.getrusage, resource.RUSAGE_SELF
        times, switches = [], [usage(process).ru_nivcsw]
        for position in range(start, start + count):
            query = queries[position % len(queries)]
            before = clock()
            query()
            times.append((clock() - before) / 1e6)
            switches.append(usage(process).ru_nivcsw)
        return {"ms": times, "interrupted": [after > before for before, after in pairwise(switches)]}

    def _profile(self, start: int, count: int) -> dict[str, list[float]]:
        clocked = {name: ClockedEngine(engine) for name, engine in self._engines.items()}
        pipeline = build_pipeline(self._manifest, clocked, self._folder)
        queries = queries_of(pipeline, self._images, self._samples)
        times = defaultdict(list)
        queries[start % len(queries)]()  # what is computed once, such as the labels' embeddings, is no query's time
        for position in range(start, start + count):
            for name, spent in profile_query(queries[position % len(queries)], clocked).items():
                times[name].append(spent)
        return times

    def _batches(self, size: int, seconds: float) -> list[float]:
        pairs = [self._images[position % len(self._images)] for position in range(size)]
        images, texts = [image for image, _ in pairs], [text for _, text in pairs]
        batch: Callable[[], object] = partial(self._pipeline.dry_run, Batch(images, texts))
        if zero_shot(self._pipeline) and self._samples["labels"]:
            batch = partial(self._pipeline.embed_images, images, batch_size=size)  # labels are embedded once
        batch()  # shapes that the engine hasn't seen
        times: list[float] = []
        while len(times) < 2 or sum(times) < 1e3 * seconds:
            before = time.perf_counter_ns()
            batch()
            times.append((time.perf_counter_ns() - before) / 1e6)
        return times


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MiB.

    From ``VmHWM`` where there is one: ``ru_maxrss`` starts at the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def serve(requests: IO[str], replies: IO[str], worker: Worker | None = None) -> int:
    """Answer requests until they end. A user's error is replied and ends the worker with status 1."""
    worker = worker or Worker()
    for line in requests:
        try:
            reply = worker.handle(json.loads(line))
        except VlmEdgeError as error:
            reply = {"error": error.message, "hint": error.hint}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        if "error" in reply:
            return 1
    return 0


def main(worker: Worker | None = None) -> int:
    """Serve on stdin and stdout, with every other writer to stdout sent to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        return serve(sys.stdin, replies, worker)


if __name__ == "__main__":
    sys.exit(main())
