"""End-to-end latency at batch 1, in the manner of MLPerf's SingleStream: one query after another.

Reddi et al., MLPerf Inference Benchmark (arXiv:1911.02549), section 4.1. How the queries are taken:
:mod:`vlm_edge.evaluation.latency_rounds`; the intervals: :mod:`vlm_edge.statistics.timing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm_edge.backends import backend
from vlm_edge.core.measurement import LatencyAsked, Measurement, Timed
from vlm_edge.core.stage import Progress, SilentProgress, TaskSpec
from vlm_edge.evaluation.conditions import passed, snapshot
from vlm_edge.evaluation.host import host_record
from vlm_edge.evaluation.latency_engine import Engine, speedup
from vlm_edge.evaluation.latency_rounds import Bench, Rounds, cold_starts, take_rounds
from vlm_edge.evaluation.latency_settings import LatencySettings
from vlm_edge.evaluation.queries import Samples, draw_samples
from vlm_edge.evaluation.worker_process import WorkerProcess
from vlm_edge.machine import usable_cpus
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.statistics.intervals import CONFIDENCE, percentile, percentile_interval
from vlm_edge.statistics.timing import LOOKED_AT, Estimate, geometric_mean, round_percentile

__all__ = ["LATENCY_VERSION", "LatencySettings", "measure_latency"]

LATENCY_VERSION = "3"
"""Raised whenever the same engines on the same host would be measured in another way."""


def measure_latency(
    baseline: Path | None,
    candidate: Path,
    task: TaskSpec | Samples,
    *,
    threads: int,
    asked: LatencyAsked | None = None,
    settings: LatencySettings | None = None,
    progress: Progress | None = None,
    worker: Callable[..., WorkerProcess] = WorkerProcess,
    is_open: Callable[[Sequence[Measurement]], bool] = lambda _: False,
) -> Timed:
    """The candidate's latency percentiles, their speed-up over the baseline, and what else is asked.

    A query is an RGB image in memory (and a text) in, and the answer out; the samples are a seeded draw from the
    task's test split. With ``baseline == candidate`` two processes of that engine are held against each other: their
    ratio is the A/A control, and the speed-up is 1 by definition. With None the candidate is measured alone.

    Args:
        task: whose test split the samples are drawn from, or the samples.
        threads: most intra-op threads of a component; no more count than this process has usable CPUs.
        worker: what starts a process.
        is_open: whether what was measured so far leaves a verdict undecided: then measuring goes on, at most for
            ``settings.patience`` seconds.

    Raises:
        VlmEdgeError: an engine cannot be loaded, its process dies or hangs, or the data set cannot be read.
    """
    asked, settings = asked or LatencyAsked(), settings or LatencySettings()
    drawn = draw_samples(task, settings.samples, settings.seed) if isinstance(task, TaskSpec) else task
    bench = Bench(drawn, min(threads, usable_cpus()), asked, settings, worker)
    control = baseline == candidate
    engines = [Engine("candidate", candidate)]
    if baseline is not None:
        engines.insert(0, Engine("control" if control else "baseline", baseline))
    before = snapshot()
    with (progress or SilentProgress()).bar("latency", settings.seconds) as bar:
        rounds = take_rounds(engines, bench, bar, lambda taken: is_open(_timed(taken, asked, control)))
        colds = cold_starts(engines[-1], bench) if asked.cold_start else []
    after = snapshot()
    measurements = [
        *_timed(rounds, asked, control),
        *_components(engines[-1]),
        *_cold(colds),
        _memory(engines[-1]),
    ]
    return Timed(measurements=measurements, conditions=_conditions(rounds, bench, passed(before, after)))


def _timed(rounds: Rounds, asked: LatencyAsked, control: bool) -> list[Measurement]:
    """Every measurement that more rounds make more certain."""
    return [
        *_latencies(rounds, asked),
        *_ratios(rounds, asked, control),
        *_throughput(rounds, asked),
    ]


def _latencies(rounds: Rounds, asked: LatencyAsked) -> list[Measurement]:
    """Percentiles of the candidate's query times, those that have enough of them."""
    engine, confidence = rounds.engines[-1], rounds.confidence(CONFIDENCE)
    found = ((quantile, round_percentile(engine.times, quantile, confidence)) for quantile in asked.percentiles)
    n = _count(engine.times)
    return [_measurement(f"latency_{_name(q)}_ms", estimate, n, "ms") for q, estimate in found if estimate is not None]


def _ratios(rounds: Rounds, asked: LatencyAsked, control: bool) -> list[Measurement]:
    """Baseline over candidate, percentile by percentile: the speed-up, or 1 and the A/A control."""
    if len(rounds.engines) < 2:
        return []
    measurements = []
    for quantile in asked.percentiles:
        found = speedup(rounds.engines[0], rounds.engines[1], quantile, rounds.confidence(LOOKED_AT))
        if found.estimate is None:
            continue
        name = f"latency_{_name(quantile)}"
        shown = Estimate(1.0, 1.0, 1.0) if control else found.estimate
        measurements.append(_measurement(f"{name}_speedup", shown, found.n, "x"))
        if control:
            measurements.append(_measurement(f"{name}_control", found.estimate, found.n, "x"))
    return measurements


def _components(engine: Engine) -> list[Measurement]:
    """The median time of each component, where a profile has enough queries for one."""
    found = ((name, times, round_percentile(times, 0.5)) for name, times in engine.components.items())
    return [
        _measurement(f"latency_p50_ms[{name}]", estimate, _count(times), "ms")
        for name, times, estimate in found
        if estimate is not None
    ]


def _cold(times: list[float]) -> list[Measurement]:
    """The median time to a first answer, with the interval between order statistics of as many processes."""
    interval = percentile_interval(times, 0.5) if times else None
    if interval is None:
        return []
    middle = Estimate(interval.low, percentile(times, 0.5), interval.high)
    return [_measurement("cold_start_ms", middle, len(times), "ms")]


def _throughput(rounds: Rounds, asked: LatencyAsked) -> list[Measurement]:
    """Images a second at the asked batch, over rounds."""
    if asked.batch is None:
        return []
    engine = rounds.engines[-1]
    rates = [1e3 * asked.batch * len(times) / sum(times) for times in engine.batches]
    rate, n = geometric_mean(rates, rounds.confidence(CONFIDENCE)), _count(engine.batches)
    return [] if rate is None else [_measurement("throughput_per_s", rate, n, "/s")]


def _memory(engine: Engine) -> Measurement:
    """The processes' peaks: the median, and the least and the highest of them."""
    peaks = engine.peaks_mb
    estimate = Estimate(min(peaks), percentile(peaks, 0.5), max(peaks))
    return _measurement("peak_rss_mb", estimate, len(peaks), "MiB")


def _conditions(rounds: Rounds, bench: Bench, meanwhile: dict[str, Any]) -> dict[str, Any]:
    """Conditions of the measurement, as JSON values."""
    infos = {engine.role: read_manifest(engine.folder).engine for engine in rounds.engines}
    return {
        "host": host_record(),
        "on_gpu": any(info is not None and backend(info.name).on_gpu for info in infos.values()),
        "meanwhile": meanwhile,
        "rounds": len(rounds),
        "blocks": sum(rounds.blocks),
        "block_queries": sorted(set(rounds.block_queries)),
        "queries": rounds.queries,
        "stopped": rounds.stopped,
        "patience_s": bench.settings.patience,
        "speedups_without_disturbed": {
            _name(quantile): speedup(rounds.engines[0], rounds.engines[1], quantile).undisturbed
            for quantile in bench.asked.percentiles
        }
        if len(rounds.engines) == 2
        else None,
        "threads": bench.threads,
        "pinned_cpus": rounds.cpus if any(cpus is not None for cpus in rounds.cpus) else None,
        "environment": bench.environment,
        "batch": bench.asked.batch,
        "engines": {
            engine.role: {
                "engine": info.model_dump(mode="json") if (info := infos[engine.role]) is not None else None,
                "stationary_rounds": sum(engine.stationary),
                "warmup_queries": engine.warmup_queries,
                "disturbed_share": round(engine.disturbed_share, 4),
                "p50_ms_of_rounds": [round(percentile(times, 0.5), 4) for times in engine.times],
            }
            for engine in rounds.engines
        },
    }


def _name(quantile: float) -> str:
    return f"p{100 * quantile:g}"


def _count(rounds: list[list[float]]) -> int:
    return sum(map(len, rounds))


def _measurement(metric: str, estimate: Estimate, n: int, unit: str) -> Measurement:
    return Measurement(metric=metric, low=estimate.low, value=estimate.value, high=estimate.high, n=n, unit=unit)
