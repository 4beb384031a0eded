"""Latency: how rounds and turns become measurements, and a real run on tiny engines. No time is asserted."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from scipy import stats
from sealed import seal_again

from vlm_edge.core.measurement import LatencyAsked
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation import latency_rounds
from vlm_edge.evaluation.latency import Bench, LatencySettings, measure_latency
from vlm_edge.evaluation.latency_engine import disturbed_queries
from vlm_edge.statistics.intervals import percentile
from vlm_edge.statistics.timing import LOOKED_AT

QUICK = LatencySettings(seconds=0, warmup_seconds=0.1, round_seconds=0.001, batch_seconds=0)


class FakeWorker:
    """Answers as a worker does, with times from a formula, and logs what it was asked."""

    def __init__(self, name, *, timeout_s, environment, bench):
        self.role = name.split()[0]
        self.bench = bench
        self.ran = 0
        bench.environment = environment
        bench.log.append((self.role, "start", 0, 0))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bench.log.append((self.role, "exit", 0, 0))

    def send(self, *, do, start=0, count=0, **rest):
        self.bench.log.append((self.role, do, start, count))
        self.answer = getattr(self, f"_{do}")(start, count, **rest)

    def reply(self):
        return self.answer

    def ask(self, **request):
        self.send(**request)
        return self.reply()

    def _load(self, start, count, *, cpus, **rest):
        self.bench.cpus.append(cpus)
        return {"queries": 32, "ms": self.bench.load_ms.pop(0) if self.bench.load_ms else 50.0}

    def _run(self, start, count):
        factor = self.bench.factors.get(self.role, 2.0)
        times = [factor * (1 + (start + step) % 32 / 32) * self.bench.noise() for step in range(count)]
        interrupted = [step in self.bench.interrupted for step in range(count)]
        return {
            "ms": [100.0 if cut else t for t, cut in zip(times, interrupted, strict=True)],
            "interrupted": interrupted,
        }

    def _memory(self, start, count):
        self.bench.peak += 1
        return {"peak_rss_mb": self.bench.peak}

    def _profile(self, start, count):
        return {"components": {"vision_encoder": [3.0] * count, "preprocessing": [1.0] * count, "other": [0.5] * count}}

    def _batch(self, start, count, *, size, seconds):
        return {"ms": [10.0 * size, 10.0 * size]}


class FakeBench:
    """Starts fake workers; ``factors`` are the roles' milliseconds."""

    def __init__(self):
        self.log = []
        self.cpus = []
        self.load_ms = []
        self.peak = 100.0
        self.factors = {"baseline": 8.0, "candidate": 2.0, "control": 2.0}
        self.noise = lambda: 1.0
        self.interrupted = set()

    def __call__(self, name, **rest):
        return FakeWorker(name, bench=self, **rest)

    def blocks(self):
        """(role, start, count) of the queries that aren't warm-up."""
        return [
            row[::2][:1] + row[2:] for row in self.log if row[1] == "run" and row[3] != latency_rounds.WARMUP_QUERIES
        ]


@pytest.fixture
def fake():
    return FakeBench()


def measure(fake, bench, *, control=False, asked=None, settings=QUICK, alone=False, **rest):
    baseline = None if alone else bench.engine if control else bench.other
    how = Bench(bench.task, 1, asked or LatencyAsked(), settings, fake)
    timed = measure_latency(baseline, bench.engine, how, **rest)
    return {measurement.metric: measurement for measurement in timed.measurements}, timed.conditions


def test_every_round_has_fresh_processes_that_take_turns(fake, bench):
    _, conditions = measure(fake, bench)
    assert conditions["rounds"] == QUICK.look_rounds
    assert [role for role, do, *_ in fake.log if do == "start"] == [
        "baseline",
        "candidate",
        "candidate",
        "baseline",
    ] * 3
    assert sum(do == "exit" for _, do, *_ in fake.log) == 12
    blocks = fake.blocks()
    assert [role for role, *_ in blocks[:4]] == ["baseline", "candidate", "candidate", "baseline"]
    assert [row[1:] for row in blocks[::2]] == [row[1:] for row in blocks[1::2]]  # the same samples
    assert conditions["blocks"] == len(blocks) / 2
    assert conditions["blocks"] % 2 == 0  # as often the one first as the other


def test_both_engines_are_pinned_to_the_same_cpus_and_pools_are_bounded(fake, bench):
    _, conditions = measure(fake, bench)
    assert fake.cpus[::2] == fake.cpus[1::2]
    assert all(len(cpus) == 1 and set(cpus) <= os.sched_getaffinity(0) for cpus in fake.cpus)
    assert conditions["pinned_cpus"] == fake.cpus[::2]
    assert fake.environment == conditions["environment"]
    assert fake.environment["OMP_NUM_THREADS"] == "1"
    loose = FakeBench()
    _, conditions = measure(loose, bench, settings=QUICK.model_copy(update={"pin": False}))
    assert set(loose.cpus) == {None}
    assert conditions["pinned_cpus"] is None


def test_measurements_are_of_the_counted_queries(fake, bench):
    found, conditions = measure(fake, bench)
    counted = [
        2.0 * (1 + (start + step) % 32 / 32)
        for role, start, count in fake.blocks()
        if role == "candidate"
        for step in range(latency_rounds.UNCOUNTED, count)
    ]
    assert conditions["queries"] == len(counted) >= 64
    for name, quantile in (("latency_p50_ms", 0.5), ("latency_p90_ms", 0.9)):
        assert found[name].value == pytest.approx(percentile(counted, quantile))
        assert found[name].low <= found[name].value <= found[name].high
        assert found[name].n == len(counted)
    for name in ("latency_p50_speedup", "latency_p90_speedup"):
        assert (found[name].low, found[name].value, found[name].high) == pytest.approx((4, 4, 4))
        assert found[name].n == len(counted)
    assert conditions["engines"]["baseline"]["disturbed_share"] == 0


def test_an_engine_against_itself_is_the_control(fake, bench):
    found, _ = measure(fake, bench, control=True)
    assert {role for role, *_ in fake.log} == {"control", "candidate"}
    for name in ("p50", "p90"):
        speedup, control = found[f"latency_{name}_speedup"], found[f"latency_{name}_control"]
        assert (speedup.low, speedup.value, speedup.high) == (1, 1, 1)
        assert (control.low, control.value, control.high) == pytest.approx((1, 1, 1))
    fake.factors["control"] = 3.0
    control = measure(fake, bench, control=True)[0]["latency_p50_control"]
    assert control.value == pytest.approx(1.5)


def test_one_engine_alone_has_neither(fake, bench):
    found, conditions = measure(fake, bench, alone=True)
    assert not [name for name in found if "speedup" in name or "control" in name]
    assert found["latency_p90_ms"].value > found["latency_p50_ms"].value
    assert set(conditions["engines"]) == {"candidate"}


def test_a_query_is_disturbed_until_the_caches_are_filled_again():
    times = [0.5, 9.0, 0.9, 0.9, 0.9, 0.9, 0.9]
    interrupted = [False, True, False, False, False, False, False]
    assert disturbed_queries(times, interrupted) == [False, True, True, True, True, False, False]
    assert disturbed_queries([20.0] * 4, [True, False, False, True]) == [True, True, False, True]
    assert disturbed_queries([], []) == []


def test_disturbed_queries_count_in_the_latency_and_not_in_the_speed_up(fake, bench):
    fake.interrupted = {2}
    found, conditions = measure(fake, bench)
    for name in ("latency_p50_speedup", "latency_p90_speedup"):
        assert (found[name].low, found[name].high) == pytest.approx((4, 4))
    share = conditions["engines"]["candidate"]["disturbed_share"]
    assert share == pytest.approx(2 / conditions["block_queries"][0], abs=1e-4)  # that one and the next, of 2 ms
    assert conditions["speedups_without_disturbed"] == {"p50": True, "p90": True}
    assert found["latency_p50_speedup"].n < found["latency_p50_ms"].n
    assert found["latency_p90_ms"].value == 100


def test_where_nearly_all_are_disturbed_all_count(fake, bench):
    fake.interrupted = set(range(100))
    found, conditions = measure(fake, bench)
    assert found["latency_p50_speedup"].value == pytest.approx(1)  # every query takes 100 ms
    assert found["latency_p50_speedup"].n == found["latency_p50_ms"].n
    assert conditions["speedups_without_disturbed"] == {"p50": False, "p90": False}


def test_a_percentile_with_too_few_queries_is_not_reported(fake, bench, monkeypatch):
    asked = LatencyAsked(percentiles=(0.5, 0.9, 0.99))
    full, _ = measure(fake, bench, asked=asked)
    assert full["latency_p99_ms"].n >= 662
    assert full["latency_p99_speedup"].n >= 662
    ticks = iter(range(0, 10**6, 20))
    monkeypatch.setattr(latency_rounds.time, "monotonic", lambda: next(ticks))
    few, conditions = measure(fake, bench, asked=asked, settings=QUICK.model_copy(update={"patience": 150}))
    assert 11 <= few["latency_p50_ms"].n < 662
    assert not [name for name in few if "p99" in name]
    assert conditions["stopped"] == "its cap of 150 s had passed"


def test_it_ends_when_every_speed_up_is_certain_or_the_time_is_up(fake, bench, monkeypatch):
    clock = {"now": 0.0}

    def tick():
        clock["now"] += 0.01
        return clock["now"]

    monkeypatch.setattr(latency_rounds.time, "monotonic", tick)
    generator = np.random.default_rng(0)
    rounds, reasons, widths = [], [], []
    for precision, spread in ((0.02, 0.001), (0.02, 0.2), (1e-9, 0.2)):
        fake.noise = lambda spread=spread: float(generator.lognormal(0, spread))
        settings = QUICK.model_copy(update={"seconds": 40.0, "precision": precision})
        found, conditions = measure(fake, bench, settings=settings, asked=LatencyAsked(percentiles=(0.5,)))
        rounds.append(conditions["rounds"])
        reasons.append(conditions["stopped"])
        widths.append(found["latency_p50_speedup"].high / found["latency_p50_speedup"].value - 1)
    assert rounds[0] == QUICK.look_rounds < rounds[1] <= rounds[2]
    assert rounds[1] % QUICK.look_rounds == 0
    assert reasons[:2] == ["every interval was narrow enough"] * 2
    assert reasons[2] == "40 s had passed"
    assert max(widths[:2]) <= 0.02


def test_it_goes_on_while_a_verdict_is_open_and_looks_again_at_twice_the_rounds(fake, bench, monkeypatch):
    ticks = iter(range(10**7))
    monkeypatch.setattr(latency_rounds.time, "monotonic", lambda: next(ticks) / 1e4)
    generator = np.random.default_rng(0)
    fake.noise = lambda: float(generator.lognormal(0, 0.05))
    looks = []

    def is_open(found):
        looks.append({each.metric: each for each in found})
        return len(looks) % 3 > 0

    found, conditions = measure(fake, bench, is_open=is_open)
    assert conditions["rounds"] == 4 * QUICK.look_rounds  # after 6, 12 and 24
    assert conditions["stopped"] == "the verdict was decided"
    assert found["latency_p90_speedup"] == looks[-1]["latency_p90_speedup"]  # what is reported is what was judged
    monkeypatch.setattr(latency_rounds, "LOOKED_AGAIN", LOOKED_AT)
    ticks, generator = iter(range(10**7)), np.random.default_rng(0)
    narrower, _ = measure(fake, bench, is_open=is_open)
    for metric in ("latency_p50_speedup", "latency_p90_speedup"):
        assert narrower[metric].value == found[metric].value
        assert found[metric].low < narrower[metric].low < narrower[metric].high < found[metric].high


def test_an_open_verdict_ends_at_the_cap(fake, bench, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(latency_rounds.time, "monotonic", lambda: next(ticks) / 100)
    settings = QUICK.model_copy(update={"patience": 20.0})
    _, conditions = measure(fake, bench, is_open=lambda _: True, settings=settings)
    assert conditions["stopped"] == "its cap of 20 s had passed"
    assert conditions["patience_s"] == 20
    assert conditions["rounds"] > QUICK.look_rounds


def test_an_open_verdict_is_left_open_earlier_than_the_patience_where_that_is_asked_for(fake, bench, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(latency_rounds.time, "monotonic", lambda: next(ticks) / 100)
    settings = QUICK.model_copy(update={"open_seconds": 20.0})
    _, conditions = measure(fake, bench, is_open=lambda _: True, settings=settings)
    assert conditions["stopped"] == "a verdict was open and 20 s had passed"
    assert conditions["patience_s"] == QUICK.patience
    assert conditions["rounds"] > QUICK.look_rounds


def test_warming_up_goes_on_while_it_gets_faster(fake, bench):
    class Warming(FakeWorker):
        def _run(self, start, count):
            self.ran += 1
            return {"ms": [max(1.0, 2.0 - 0.2 * self.ran)] * count, "interrupted": [False] * count}

    def start(name, **rest):
        return Warming(name, bench=fake, **rest)

    _, conditions = measure(start, bench, settings=QUICK.model_copy(update={"warmup_seconds": 60}))
    engine = conditions["engines"]["candidate"]
    # 1.8, 1.6, 1.4, 1.2, 1.0 ms, then two windows that are no faster
    assert engine["warmup_queries"] == [7 * latency_rounds.WARMUP_QUERIES] * 6
    assert engine["stationary_rounds"] == 6
    assert conditions["on_gpu"] is False
    _, conditions = measure(start, bench, settings=QUICK.model_copy(update={"warmup_seconds": 0}))
    assert conditions["engines"]["candidate"]["stationary_rounds"] == 0


def test_components_throughput_and_memory(fake, bench):
    found, _ = measure(fake, bench, asked=LatencyAsked(batch=4))
    parts = {name: found[f"latency_p50_ms[{name}]"].value for name in ("vision_encoder", "preprocessing", "other")}
    assert parts == {"vision_encoder": 3.0, "preprocessing": 1.0, "other": 0.5}
    assert found["throughput_per_s"].value == pytest.approx(100)
    assert found["throughput_per_s"].n == 2 * QUICK.look_rounds
    assert (found["peak_rss_mb"].low, found["peak_rss_mb"].high) == (102, 112)  # the candidate's, of 12 processes
    assert "throughput_per_s" not in measure(fake, bench)[0]


def test_cold_starts_are_processes_of_their_own(fake, bench):
    settings = QUICK.model_copy(update={"cold_starts": 9})
    fake.load_ms = [0.0] * 12 + [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]
    found, _ = measure(fake, bench, asked=LatencyAsked(cold_start=True), settings=settings)
    cold = found["cold_start_ms"]
    assert (cold.low, cold.value, cold.high, cold.n) == (22, 52, 82, 9)  # the first query takes 2 ms
    assert stats.binom.cdf(1, 9, 0.5) <= 0.025 < stats.binom.cdf(2, 9, 0.5)  # ranks 2 and 8
    assert sum(do == "start" for _, do, *_ in fake.log) == 12 + 9


def test_conditions_are_json_and_say_what_was_true(fake, bench):
    import json

    _, conditions = measure(fake, bench)
    assert json.loads(json.dumps(conditions)) == conditions
    assert conditions["host"]["cpu"]
    assert conditions["meanwhile"]["seconds"] >= 0
    assert conditions["threads"] == 1
    assert len(conditions["engines"]["candidate"]["p50_ms_of_rounds"]) == conditions["rounds"]


def test_real_processes_measure_real_engines(bench):
    began = time.monotonic()
    settings = QUICK.model_copy(update={"look_rounds": 2, "cold_starts": 6})
    how = Bench(bench.task, 1, LatencyAsked(batch=4, cold_start=True), settings)
    timed = measure_latency(bench.other, bench.engine, how)
    assert timed.conditions["meanwhile"]["seconds"] <= time.monotonic() - began
    found = {each.metric: each for each in timed.measurements}
    assert set(found) == {
        "latency_p50_ms",
        "latency_p90_ms",
        "latency_p50_speedup",
        "latency_p90_speedup",
        "latency_p50_ms[vision_encoder]",
        "latency_p50_ms[text_encoder]",
        "latency_p50_ms[decoder]",
        "latency_p50_ms[preprocessing]",
        "latency_p50_ms[other]",
        "cold_start_ms",
        "throughput_per_s",
        "peak_rss_mb",
    }
    assert all(0 < m.low <= m.value <= m.high for m in found.values())
    assert found["latency_p90_ms"].n >= 64


def test_a_dual_encoder_is_measured_too(dual_bench):
    settings = QUICK.model_copy(update={"look_rounds": 2})
    how = Bench(dual_bench.task, 1, LatencyAsked(batch=2), settings)
    timed = measure_latency(None, dual_bench.engine, how)
    found = {each.metric: each for each in timed.measurements}
    assert found["latency_p90_ms"].value > 0
    assert found["throughput_per_s"].value > 0
    assert found["latency_p50_ms[text_encoder]"].value == 0  # labels are embedded once, before the profile


def test_an_engine_that_cannot_be_loaded_is_named(bench):
    (bench.other / "decoder.onnx").write_bytes(b"no graph")
    seal_again(bench.other)
    with pytest.raises(VlmEdgeError, match=r"(?s)candidate engine .*other.*decoder\.onnx") as caught:
        measure_latency(bench.engine, bench.other, Bench(bench.task, 1, settings=QUICK))
    assert "again" in (caught.value.hint or "")


def test_no_readable_image_is_an_error(bench):
    for image in bench.images.glob("*.png"):
        image.write_bytes(b"")
    with pytest.raises(VlmEdgeError, match="none of the images"):
        measure_latency(bench.engine, bench.other, Bench(bench.task, 1, settings=QUICK))
