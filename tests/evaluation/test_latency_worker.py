"""The worker's requests, answered inside this process on a tiny engine."""

from __future__ import annotations

import os
import resource

import pytest

from vlm_edge.evaluation.latency_worker import ClockedEngine, Worker, profile_query
from vlm_edge.evaluation.queries import draw_samples
from vlm_edge.runtime import VqaPipeline


@pytest.fixture
def samples(bench):
    return draw_samples(bench.task, 8, seed=0)


@pytest.fixture
def worker(bench, samples):
    worker = Worker()
    reply = worker.handle({"do": "load", "folder": str(bench.engine), "threads": 1, "samples": samples, "cpus": None})
    assert reply["queries"] == 8
    assert reply["ms"] > 0
    return worker


def test_queries_go_round_the_samples(worker):
    asked = []
    worker._queries = [lambda number=number: asked.append(number) for number in range(8)]
    reply = worker.handle({"do": "run", "start": 6, "count": 4})
    assert asked == [6, 7, 0, 1]
    assert len(reply["ms"]) == len(reply["interrupted"]) == 4
    assert all(time_ms >= 0 for time_ms in reply["ms"])


def test_an_interruption_is_seen_in_its_own_query(worker, monkeypatch):
    counts = iter([5, 5, 6, 6, 8])

    class Usage:
        def __init__(self, who):
            assert who == resource.RUSAGE_SELF
            self.ru_nivcsw = next(counts)

    monkeypatch.setattr("vlm_edge.evaluation.latency_worker.resource.getrusage", Usage)
    assert worker.handle({"do": "run", "start": 0, "count": 4})["interrupted"] == [False, True, False, True]


def test_a_worker_is_pinned_before_it_loads(bench, samples, monkeypatch):
    pinned = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cpus: pinned.append((process, cpus)), raising=False)
    Worker().handle({"do": "load", "folder": str(bench.engine), "threads": 1, "samples": samples, "cpus": [0]})
    assert pinned == [(0, [0])]


def test_components_add_up_to_the_query(worker):
    components = worker.handle({"do": "profile", "start": 0, "count": 5})["components"]
    assert set(components) == {"vision_encoder", "text_encoder", "decoder", "preprocessing", "other"}
    assert all(len(times) == 5 for times in components.values())
    assert all(time_ms > 0 for name in components for time_ms in components[name] if name != "other")


def test_a_query_s_time_is_shared_out(monkeypatch):
    """A clock that ticks by one millisecond: the parts are known."""
    ticks = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr("vlm_edge.evaluation.latency_worker.time.perf_counter_ns", lambda: next(ticks))

    class Plain:
        name, inputs, outputs = "plain", {"x": 1}, {"y": 2}

        def infer(self, feed):
            next(ticks)
            return feed

    engines = {"first": ClockedEngine(Plain()), "second": ClockedEngine(Plain()), "unused": ClockedEngine(Plain())}
    assert (engines["first"].inputs, engines["first"].outputs) == ({"x": 1}, {"y": 2})

    def query():
        next(ticks)  # preprocessing
        assert engines["first"].infer({"a": 3}) == {"a": 3}
        for _ in range(2):
            engines["second"].infer({})

    spent = profile_query(query, engines)
    assert spent == {"first": 2.0, "second": 4.0, "unused": 0.0, "preprocessing": 2.0, "other": 3.0}
    ticks = iter(range(0, 10**9, 10**6))
    assert profile_query(query, engines) == spent  # nothing is left over from the query before


def test_batches_are_run_at_their_size(worker, monkeypatch):
    sizes = []

    def dry_run(pipeline, batch):
        assert isinstance(pipeline, VqaPipeline)
        sizes.append((len(batch.images), len(batch.texts)))

    monkeypatch.setattr(VqaPipeline, "dry_run", dry_run)
    times = worker.handle({"do": "batch", "size": 11, "seconds": 0})["ms"]
    assert len(times) == 2
    assert sizes == [(11, 11)] * 3  # the first is not timed
