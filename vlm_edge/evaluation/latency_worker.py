"""The process that one engine's latency is measured in: ``python -m vlm_edge.evaluation.latency_worker``.

It reads one JSON request a line on stdin and answers each with one JSON line: ``load`` (folder, threads, samples),
``run`` (start, count: that many queries from sample ``start`` on, round and round) and ``memory``. It sleeps in a read
between requests, and ends when stdin ends. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import read_image
from vlm_edge.runtime import load_pipeline

MAX_SAMPLE_BYTES = 64 * 2**20
"""Decoded images that are kept in memory, so that they weigh little in the peak that is reported."""

Query = Callable[[], object]


class Worker:
    """Answers requests; one engine, loaded once."""

    def __init__(self) -> None:
        self._queries: list[Query] = []

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request -> its reply.

        Raises:
            VlmEdgeError: the engine cannot be loaded, none of the images can be read, or a query fails.
        """
        if request["do"] == "load":
            self._queries = load_queries(Path(request["folder"]), request["threads"], request["samples"])
            return {"queries": len(self._queries)}
        if request["do"] == "run":
            return {"ms": self._run(request["start"], request["count"])}
        return {"peak_rss_mb": peak_rss_mb()}

    def _run(self, start: int, count: int) -> list[float]:
        clock, queries = time.perf_counter_ns, self._queries
        times = []
        for position in range(start, start + count):
            query = queries[position % len(queries)]
            before = clock()
            query()
            times.append((clock() - before) / 1e6)
        return times


def load_queries(folder: Path, threads: int, samples: dict[str, Any]) -> list[Query]:
    """The engine's queries, end to end: a decoded RGB image (and a question) in, the answer out.

    ``samples``: ``items`` is a list of [image path, text]; ``labels`` and ``prompts`` are the classes of a dual
    encoder. Images that cannot be read are left out, as the accuracy evaluation leaves them out.
    """
    pipeline = load_pipeline(folder, threads=threads)
    queries: list[Query] = []
    held, reason = 0, "no sample"
    for path, text in samples["items"]:
        try:
            image = read_image(Path(path))
        except VlmEdgeError as error:
            reason = error.message
            continue
        held += image.nbytes
        if queries and held > MAX_SAMPLE_BYTES:
            break
        queries.append(partial(pipeline.query, image, text, tuple(samples["labels"]), tuple(samples["prompts"])))
    if not queries:
        raise VlmEdgeError(f"none of the images to measure the latency with can be read: {reason}")
    return queries


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


def serve(requests: IO[str], replies: IO[str]) -> int:
    """Answer requests until they end. A user's error is replied and ends the worker with status 1."""
    worker = Worker()
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


def main() -> int:
    """Serve on stdin and stdout, with every other writer to stdout sent to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        return serve(sys.stdin, replies)


if __name__ == "__main__":
    sys.exit(main())
