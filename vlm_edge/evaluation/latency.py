"""End-to-end latency at batch 1, in the manner of MLPerf's SingleStream: one query after another.

Reddi et al., MLPerf Inference Benchmark (arXiv:1911.02549), section 4.1. How the queries are taken:
:mod:`vlm_edge.evaluation.latency_rounds`; the intervals: :mod:`vlm_edge.statistics.timing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_edge.backends import backend
from vlm_edge.core.measurement import LatencyAsked, Measurement, Timed
from vlm_edge.core.stage import Progress, SilentProgress
from vlm_edge.evaluation.host import host_record, passed, snapshot
from vlm_edge.evaluation.latency_engine import Engine, speedup
from vlm_edge.evaluation.latency_rounds import Bench, LatencySettings, Rounds, cold_starts, take_rounds
from vlm_edge.machine import usable_cpus
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.statistics.intervals import CONFIDENCE, percentile, percentile_interval
from vlm_edge.statistics.timing import LOOKED_AT, Estimate, geometric_mean, round_percentile

__all__ = ["LATENCY_VERSION", "Bench", "LatencySettings", "measure_latency"]

LATENCY_VERSION = "3"
"""Raised whenever the same engines on the same host would be measured in another way."""


def measure_latency(
    baseline: Path | None,
    candidate: Path,
    bench: Bench,
    *,
    progress: Progress | None = None,
    is_open: Callable[[Sequence[Measurement]], bool] = lambda _: False,
) -> Timed:
    """The candidate's latency percentiles, their speed-up over the baseline, and what else is asked.

    A query is an RGB image in memory (and a text) in, and the answer out. With ``baseline == candidate`` two processes
    of that engine are held against each other: their ratio is the A/A control, and the speed-up is 1 by definition.
    With None the candidate is measured alone.

    Args:
        bench: the task, the threads and the settings; no more threads count than this process has usable CPUs.
        is_open: whether what was measured so far leaves a verdict undecided: then measuring goes on, at most for
            ``settings.open_seconds``.

    Raises:
        VlmEdgeError: an engine cannot be loaded, its process dies or hangs, or the data set cannot be read.
    """
    bench = replace(bench, threads=min(bench.threads, usable_cpus()))
    control = baseline == candidate
    engines = [Engine("candidate", candidate)]
    if baseline is not None:
        engines.insert(0, Engine("control" if control else "baseline", baseline))
    before = snapshot()
    with (progress or SilentProgress()).bar("latency", bench.settings.seconds) as bar:
        rounds = take_rounds(engines, bench, bar, lambda taken: is_open(_timed(taken, bench.asked, control)))
        colds = cold_starts(engines[-1], bench) if bench.asked.cold_start else []
    after = snapshot()
    peaks = engines[-1].peaks_mb
    measurements = [*_timed(rounds, bench.asked, control), *_components(engines[-1])]
    if (interval := percentile_interval(colds, 0.5) if colds else None) is not None:
        middle = Estimate(interval.low, percentile(colds, 0.5), interval.high)
        measurements.append(_measurement("cold_start_ms", middle, len(colds), "ms"))
    peak = Estimate(min(peaks), percentile(peaks, 0.5), max(peaks))
    measurements.append(_measurement("peak_rss_mb", peak, len(peaks), "MiB"))
    return Timed(measurements=measurements, conditions=_conditions(rounds, bench, passed(before, after)))


def _timed(rounds: Rounds, asked: LatencyAsked, control: bool) -> list[Measurement]:
    """Every measurement that more rounds make more certain; percentiles with too few queries are left out."""
    engine, confidence = rounds.engines[-1], rounds.confidence(CONFIDENCE)
    n, measurements = sum(map(len, engine.times)), []
    for quantile in asked.percentiles:
        if (estimate := round_percentile(engine.times, quantile, confidence)) is not None:
            measurements.append(_measurement(f"latency_{_name(quantile)}_ms", estimate, n, "ms"))
    measurements += _ratios(rounds, asked, control)
    if asked.batch is not None:
        rates = [1e3 * asked.batch * len(times) / sum(times) for times in engine.batches]
        if (rate := geometric_mean(rates, confidence)) is not None:
            measurements.append(_measurement("throughput_per_s", rate, sum(map(len, engine.batches)), "/s"))
    return measurements


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
    return [
        _measurement(f"latency_p50_ms[{name}]", estimate, sum(map(len, times)), "ms")
        for name, times in engine.components.items()
        if (estimate := round_percentile(times, 0.5)) is not None
    ]


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


def _measurement(metric: str, estimate: Estimate, n: int, unit: str) -> Measurement:
    return Measurement(metric=metric, low=estimate.low, value=estimate.value, high=estimate.high, n=n, unit=unit)
