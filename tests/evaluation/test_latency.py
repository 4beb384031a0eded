"""Latency: how blocks take turns and become measurements, and a real run on tiny engines. No time is asserted."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation import latency
from vlm_edge.evaluation.latency import LatencySettings, measure_latency
from vlm_edge.numerics.statistics import percentile, percentile_interval

QUICK = LatencySettings(seconds=0, warmup_seconds=0.1, block_seconds=0.001)


class FakeWorker:
    """Answers as a worker does, with times from a formula, and logs what it was asked."""

    log: list[tuple[str, str, int, int]]
    slow_ms = 8.0
    peak = 123.0

    def __init__(self, name, *, timeout_s):
        self.role = name.split()[0]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.log.append((self.role, "exit", 0, 0))

    def ask(self, *, do, start=0, count=0, **rest):
        self.log.append((self.role, do, start, count))
        if do == "memory":
            return {"peak_rss_mb": self.peak}
        factor = self.slow_ms if self.role == "baseline" else self.slow_ms / 4
        return {"ms": [factor * (1 + (start + step) % 32 / 32) for step in range(count)]}


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeWorker, "log", [], raising=False)
    monkeypatch.setattr(latency, "WorkerProcess", FakeWorker)
    return FakeWorker


def named(measurements):
    return {measurement.metric: measurement for measurement in measurements}


def test_blocks_take_turns_over_the_same_samples(fake, bench):
    measure_latency(bench.engine, bench.other, bench.task, threads=1, settings=QUICK)
    runs = [entry for entry in fake.log if entry[1] == "run" and entry[3] > latency.WARMUP_QUERIES]
    assert [role for role, *_ in runs[:6]] == ["baseline", "candidate"] * 3
    assert [entry[2:] for entry in runs[::2]] == [entry[2:] for entry in runs[1::2]]
    loads = [role for role, do, *_ in fake.log if do == "load"]
    assert sorted(loads) == ["baseline", "candidate"]
    assert [entry[:2] for entry in fake.log[-2:]] == [("candidate", "exit"), ("baseline", "exit")]


def test_measurements_are_percentiles_of_the_counted_queries(fake, bench):
    found = named(measure_latency(bench.engine, bench.other, bench.task, threads=1, settings=QUICK))
    runs = [entry for entry in fake.log if entry[0] == "candidate" and entry[1] == "run"]
    counted = [
        2.0 * (1 + (start + step) % 32 / 32)
        for _, _, start, count in runs
        if count > latency.WARMUP_QUERIES
        for step in range(latency.UNCOUNTED, count)
    ]
    assert len(counted) >= 64
    for name, quantile in (("latency_p50_ms", 0.5), ("latency_p90_ms", 0.9)):
        assert found[name].value == pytest.approx(percentile(counted, quantile))
        assert (found[name].low, found[name].high) == pytest.approx(percentile_interval(counted, quantile))
        assert found[name].n == len(counted)
    for name in ("latency_p50_speedup", "latency_p90_speedup"):
        assert (found[name].low, found[name].value, found[name].high) == pytest.approx((4, 4, 4))
    assert found["peak_rss_mb"].value == 123


def test_the_baseline_alone_has_a_speed_up_of_one(fake, bench):
    found = named(measure_latency(bench.engine, bench.engine, bench.task, threads=1, settings=QUICK))
    assert {role for role, *_ in fake.log} == {"candidate"}
    speedup = found["latency_p90_speedup"]
    assert (speedup.low, speedup.value, speedup.high) == (1, 1, 1)
    assert found["latency_p90_ms"].value > found["latency_p50_ms"].value


@pytest.mark.usefixtures("fake")
def test_a_percentile_with_too_few_queries_is_not_reported(bench, monkeypatch):
    settings = QUICK.model_copy(update={"percentiles": (0.5, 0.9, 0.99)})
    full = named(measure_latency(bench.engine, bench.other, bench.task, threads=1, settings=settings))
    assert full["latency_p99_ms"].n >= 368
    ticks = iter(range(0, 10**6, 30))
    monkeypatch.setattr(latency.time, "monotonic", lambda: next(ticks))
    few = named(measure_latency(bench.engine, bench.other, bench.task, threads=1, settings=settings))
    assert 64 <= few["latency_p90_ms"].n < 368
    assert not [name for name in few if "p99" in name]
    ticks = iter(range(0, 10**6, 200))
    none = named(measure_latency(bench.engine, bench.other, bench.task, threads=1, settings=settings))
    assert set(none) == {"latency_p50_ms", "latency_p50_speedup", "peak_rss_mb"}


@pytest.mark.usefixtures("fake")
def test_it_goes_on_until_the_speed_up_is_certain_or_the_time_is_up(bench, monkeypatch):
    noise = np.random.default_rng(0)
    plain = FakeWorker.ask

    def noisy(self, **request):
        reply = plain(self, **request)
        if "ms" in reply:
            reply["ms"] = [time * noise.lognormal(0, 0.3) for time in reply["ms"]]
        return reply

    monkeypatch.setattr(FakeWorker, "ask", noisy)
    clock = {"now": 0.0}

    def tick():
        clock["now"] += 0.05
        return clock["now"]

    monkeypatch.setattr(latency.time, "monotonic", tick)
    counts, widths = [], []
    for precision in (0.2, 0.1, 1e-9):
        settings = QUICK.model_copy(update={"seconds": 20.0, "precision": precision})
        speedup = named(measure_latency(bench.engine, bench.other, bench.task, threads=1, settings=settings))[
            "latency_p90_speedup"
        ]
        counts.append(speedup.n)
        widths.append(max(speedup.high / speedup.value - 1, 1 - speedup.low / speedup.value))
    assert counts[0] <= counts[1] < counts[2]
    assert widths[0] <= 1.1 * 0.2  # the last look and the report draw differently
    assert widths[1] <= 1.1 * 0.1


def test_real_processes_measure_real_engines(bench):
    found = named(measure_latency(bench.engine, bench.other, bench.task, threads=1, settings=QUICK))
    assert set(found) == {
        "latency_p50_ms",
        "latency_p90_ms",
        "latency_p50_speedup",
        "latency_p90_speedup",
        "peak_rss_mb",
    }
    assert all(0 < m.low <= m.value <= m.high for m in found.values())
    assert found["latency_p90_ms"].n >= 64


def test_a_dual_encoder_is_measured_too(dual_bench):
    found = named(measure_latency(dual_bench.engine, dual_bench.engine, dual_bench.task, threads=1, settings=QUICK))
    assert found["latency_p90_ms"].value > 0


def test_an_engine_that_cannot_be_loaded_is_named(bench):
    (bench.other / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(VlmEdgeError, match=r"(?s)candidate engine .*other.*decoder\.onnx") as caught:
        measure_latency(bench.engine, bench.other, bench.task, threads=1, settings=QUICK)
    assert "again" in (caught.value.hint or "")


def test_no_readable_image_is_an_error(bench):
    for image in bench.images.glob("*.png"):
        image.write_bytes(b"")
    with pytest.raises(VlmEdgeError, match="none of the images"):
        measure_latency(bench.engine, bench.other, bench.task, threads=1, settings=QUICK)
