"""End-to-end latency at batch 1, in the manner of MLPerf's SingleStream: one query after another.

Reddi et al., MLPerf Inference Benchmark (arXiv:1911.02549), section 4.1. Baseline and candidate run in a process each,
in short blocks that take turns, so that what slows the machine down for a while slows both down.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vlm_edge.core.measurement import Measurement
from vlm_edge.core.stage import Progress, SilentProgress, TaskSpec, Ticker
from vlm_edge.data import load_dataset
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.worker_process import WorkerProcess
from vlm_edge.numerics.statistics import (
    Interval,
    minimal_n,
    percentile,
    percentile_interval,
    percentile_ratio_interval,
)


class LatencySettings(BaseModel):
    """How long and how finely latency is measured.

    A comparison takes ``min_queries`` of each engine, then goes on until the speed-up's 95% interval is within
    ``precision`` of its value to either side, or ``seconds`` have passed; ``max_seconds`` ends it even before
    ``min_queries``. Percentiles that then have too few queries are not reported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    percentiles: tuple[float, ...] = (0.5, 0.9)
    samples: int = Field(default=32, ge=1, description="images and questions that the queries go round")
    seed: int = 0
    min_queries: int = Field(default=64, ge=1)
    precision: float = Field(default=0.02, gt=0)
    seconds: float = Field(default=20.0, ge=0)
    max_seconds: float = Field(default=300.0, gt=0)
    warmup_seconds: float = Field(default=5.0, ge=0, description="most that warming up may take, for each engine")
    block_seconds: float = Field(default=0.25, gt=0, description="length of the slower engine's blocks")
    timeout_s: float = Field(default=300.0, gt=0, description="longest wait for an engine to load or a block to end")

    def enough(self, quantile: float) -> int:
        """Queries below which a percentile is not reported; 64 for p90, 368 for p99."""
        return max(self.min_queries, minimal_n(quantile)) if quantile > 0.5 else minimal_n(quantile)


BLOCK_QUERIES = (8, 64)
UNCOUNTED = 1
"""Queries at the start of each block that are not counted: the other engine has just filled the caches."""
WARMUP_QUERIES = 4
LOOK_AGAIN = 1.2
STEADY = 0.05
"""Warm-up ends when two blocks' medians differ by no more than this share."""


@dataclass
class Run:
    """One engine's worker and the times of its blocks, in ms."""

    worker: WorkerProcess
    blocks: list[list[float]] = field(default_factory=list)
    median_ms: float = 0.0

    @property
    def times(self) -> list[float]:
        return [time_ms for block in self.blocks for time_ms in block]

    def query(self, start: int, count: int) -> list[float]:
        times: list[float] = self.worker.ask(do="run", start=start, count=count)["ms"]
        return times


def measure_latency(
    baseline: Path,
    candidate: Path,
    task: TaskSpec,
    *,
    threads: int,
    settings: LatencySettings | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """The candidate's latency percentiles, their speed-up over the baseline, and its peak memory.

    A query is an RGB image in memory (and a question) in, and the answer out; the samples are a seeded draw from the
    task's test split. With ``baseline == candidate`` one engine is measured, and its speed-up is 1 by definition.

    Raises:
        VlmEdgeError: an engine cannot be loaded, its process dies or hangs, or the data set cannot be read.
    """
    settings = settings or LatencySettings()
    samples = _samples(task, settings)
    with ExitStack() as stack:
        roles = {"candidate": candidate} if baseline == candidate else {"baseline": baseline, "candidate": candidate}
        runs = {}
        for role, folder in roles.items():
            name = f"{role} engine {folder}"
            worker = stack.enter_context(WorkerProcess(name, timeout_s=settings.timeout_s))
            worker.ask(do="load", folder=str(folder), threads=threads, samples=samples)
            runs[role] = Run(worker)
        _measure(list(runs.values()), settings, progress or SilentProgress())
        peak = float(runs["candidate"].worker.ask(do="memory")["peak_rss_mb"])
    times = runs["candidate"].times
    memory = Measurement(metric="peak_rss_mb", low=peak, value=peak, high=peak, n=len(times), unit="MiB")
    return [*_latencies(times, settings), *_speedups(runs, settings), memory]


def _samples(task: TaskSpec, settings: LatencySettings) -> dict[str, Any]:
    """What both workers load: a seeded draw from the test split, the same for both."""
    dataset = load_dataset(task.data, "test")
    if dataset.kind != task.kind:
        raise VlmEdgeError(f"{task.data}: of kind {dataset.kind}, the recipe's task is of kind {task.kind}")
    count = min(settings.samples, len(dataset.samples))
    drawn = random.Random(settings.seed).sample(dataset.samples, count)
    items = [[str(sample.image.resolve()), sample.text] for sample in drawn]
    return {"items": items, "labels": dataset.labels, "prompts": dataset.prompts}


def _measure(runs: Sequence[Run], settings: LatencySettings, progress: Progress) -> None:
    """Warm every engine up, then fill their blocks."""
    with progress.bar("latency", settings.seconds + len(runs) * settings.warmup_seconds) as bar:
        for run in runs:
            began = time.monotonic()
            _warm_up(run, settings)
            bar.advance(min(time.monotonic() - began, settings.warmup_seconds))
        _take_turns(runs, settings, bar)


def _warm_up(run: Run, settings: LatencySettings) -> None:
    """Query until two blocks in a row take about the same time, or the time for it is over."""
    ends = time.monotonic() + settings.warmup_seconds
    run.median_ms = statistics.median(run.query(0, WARMUP_QUERIES))
    while time.monotonic() < ends:
        before, run.median_ms = run.median_ms, statistics.median(run.query(0, WARMUP_QUERIES))
        if abs(run.median_ms - before) <= STEADY * before:
            return


def _take_turns(runs: Sequence[Run], settings: LatencySettings, bar: Ticker) -> None:
    """Blocks in turns until there is enough; whether the interval is narrow is looked at as the queries grow."""
    least, most = BLOCK_QUERIES
    slowest = max(run.median_ms for run in runs)
    count = min(most, max(least, round(1e3 * settings.block_seconds / slowest)))
    rarest = max(settings.percentiles)
    needed = look_at = max(settings.min_queries, settings.enough(rarest))
    began = time.monotonic()
    start, elapsed = 0, 0.0
    while elapsed < settings.max_seconds:
        for run in runs:
            run.blocks.append(run.query(start, UNCOUNTED + count)[UNCOUNTED:])
        start += count
        before, elapsed = elapsed, time.monotonic() - began
        bar.advance(min(elapsed, settings.seconds) - min(before, settings.seconds), note=f"{start} queries")
        if start >= needed and elapsed >= settings.seconds:
            return
        if start >= look_at:
            if _is_precise(runs, rarest, settings):
                return
            look_at = math.ceil(LOOK_AGAIN * start)


def _is_precise(runs: Sequence[Run], quantile: float, settings: LatencySettings) -> bool:
    """Whether the interval of the speed-up (of the latency, for one engine) is narrow enough."""
    if len(runs) == 1:
        interval = percentile_interval(runs[0].times, quantile)
        value = percentile(runs[0].times, quantile)
    else:
        interval = percentile_ratio_interval(
            runs[0].blocks, runs[1].blocks, quantile, seed=settings.seed, resamples=500
        )
        value = percentile(runs[0].times, quantile) / percentile(runs[1].times, quantile)
    if interval is None:
        return False
    return max(interval.high - value, value - interval.low) <= settings.precision * value


def _latencies(times: Sequence[float], settings: LatencySettings) -> list[Measurement]:
    """Percentiles of one engine's query times, those that have enough of them."""
    measurements = []
    for quantile in settings.percentiles:
        interval = percentile_interval(times, quantile)
        if interval is not None and len(times) >= settings.enough(quantile):
            metric = f"latency_p{100 * quantile:g}_ms"
            measurements.append(_measurement(metric, interval, percentile(times, quantile), len(times), "ms"))
    return measurements


def _speedups(runs: dict[str, Run], settings: LatencySettings) -> list[Measurement]:
    """Baseline over candidate, percentile by percentile; exactly 1 for the baseline itself."""
    candidate = runs["candidate"]
    baseline = runs.get("baseline", candidate)
    n = len(candidate.times)
    measurements = []
    for quantile in settings.percentiles:
        if n < settings.enough(quantile):
            continue
        value, interval = 1.0, Interval(1.0, 1.0)
        if baseline is not candidate:
            value = percentile(baseline.times, quantile) / percentile(candidate.times, quantile)
            interval = percentile_ratio_interval(baseline.blocks, candidate.blocks, quantile, seed=settings.seed)
            interval = interval.hull(Interval(value, value))
        measurements.append(_measurement(f"latency_p{100 * quantile:g}_speedup", interval, value, n, "x"))
    return measurements


def _measurement(metric: str, interval: Interval, value: float, n: int, unit: str) -> Measurement:
    return Measurement(metric=metric, low=interval.low, value=value, high=interval.high, n=n, unit=unit)
