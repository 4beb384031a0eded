"""Take rounds of a latency measurement: fresh processes that take turns.

In a round, every engine is loaded in a process of its own, all pinned to the same CPUs, and warmed up. Then they take
turns in short blocks, A B B A A B ..., so that what slows the machine for a while slows all and a steady drift cancels.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vlm_edge.backends import backend
from vlm_edge.core.measurement import PATIENCE_S, LatencyAsked
from vlm_edge.core.stage import TaskSpec, Ticker
from vlm_edge.evaluation.latency_engine import Block, Engine, disturbed_queries, speedup
from vlm_edge.evaluation.queries import Samples, draw_samples
from vlm_edge.evaluation.worker_process import WorkerProcess
from vlm_edge.machine import allowed_cpus, first_line
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.statistics.timing import LOOKED_AGAIN, fewest_queries, round_percentile

CPUS = Path("/sys/devices/system/cpu")
STAT = Path("/proc/stat")


def idle_ticks() -> dict[int, int]:
    """Clock ticks that each CPU has been idle since the system started; empty where they can't be read."""
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
    return {int(row[0][3:]): int(row[4]) + int(row[5]) for row in fields}


def quiet_cpus(count: int, before: Mapping[int, int], after: Mapping[int, int]) -> list[int] | None:
    """``count`` CPUs for an engine: the fastest, one of each core as far as there are such, the idlest meanwhile.

    ``before`` and ``after`` are two readings of :func:`idle_ticks`. None where the platform can't pin, or there are
    fewer CPUs than threads.
    """
    usable = allowed_cpus()
    if usable is None or len(usable) < count:
        return None
    seen: dict[str, int] = {}

    def order(cpu: int) -> tuple[float, int, int]:
        return -_speed(cpu), before.get(cpu, 0) - after.get(cpu, 0), -cpu

    ranked = sorted(usable, key=order)
    siblings = {}
    for cpu in ranked:
        core = first_line(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)
        siblings[cpu] = seen.get(core, 0)
        seen[core] = seen.get(core, 0) + 1
    return sorted(sorted(ranked, key=lambda cpu: siblings[cpu])[:count])


def _speed(cpu: int) -> float:
    """Highest speed of a CPU: its capacity (ARM's big and little cores), else its clock rate; 0 where unknown."""
    folder = CPUS / f"cpu{cpu}"
    for file in (folder / "cpu_capacity", folder / "cpufreq" / "cpuinfo_max_freq"):
        text = first_line(file)
        if text is not None and text.isdigit():
            return float(text)
    return 0.0


BLOCK_QUERIES = (4, 64)
UNCOUNTED = 1
"""Queries at the start of each block that are not counted: the other engine has just filled the caches."""
WARMUP_QUERIES = 8
"""Queries of one warm-up window."""
FASTER = 0.05
"""Warm-up ends after two windows in a row that are not this much faster than the fastest before them."""


@dataclass
class Rounds:
    """All rounds of a measurement, and why it ended."""

    engines: list[Engine]
    cpus: list[list[int] | None] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    block_queries: list[int] = field(default_factory=list)
    stopped: str = ""
    next_look: int | None = None
    """Rounds at which the verdict is looked at again, once it was found to be open."""

    def __len__(self) -> int:
        return len(self.blocks)

    def confidence(self, of_one_look: float) -> float:
        """Confidence of an interval: higher where it was looked at repeatedly until it decided the verdict."""
        return of_one_look if self.next_look is None else LOOKED_AGAIN

    @property
    def queries(self) -> int:
        """Counted queries of each engine."""
        return sum(map(len, self.engines[0].times))


class LatencySettings(BaseModel):
    """A measurement is a row of rounds, each with processes of its own.

    After every ``look_rounds`` rounds it ends if the interval of the median's speed-up is within ``precision`` of its
    value to either side, and those of rarer percentiles within ``tail_precision``; else when ``seconds`` have passed.
    While a verdict is open then, it goes on until ``open_seconds`` have passed; while there are too few queries for
    what was asked, until ``patience`` seconds have. Percentiles that then have too few are not reported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=32, ge=1, description="images and texts that the queries go round")
    seed: int = 0
    look_rounds: int = Field(default=6, ge=2, description="rounds between two looks at the width of the interval")
    round_seconds: float = Field(default=1.0, gt=0, description="time of all engines' queries in a round")
    precision: float = Field(default=0.015, gt=0)
    tail_precision: float = Field(default=0.05, gt=0)
    seconds: float = Field(default=15.0, ge=0, description="time after which it ends, its verdict being decided")
    patience: float = Field(default=PATIENCE_S, gt=0, description="time after which it ends with what there is")
    open_seconds: float = Field(default=PATIENCE_S, gt=0, description="time after which an open verdict is left open")
    warmup_seconds: float = Field(default=5.0, ge=0, description="most that warming up one process may take")
    block_seconds: float = Field(default=0.006, gt=0, description="length of the slower engine's turns")
    pin: bool = Field(default=True, description="bind CPU engines to as many CPUs as they have threads")
    cold_starts: int = Field(default=7, ge=6, description="fresh processes for the time to a first answer")
    batch_seconds: float = Field(default=0.5, ge=0, description="time of batches in a round, for the throughput")
    profile_queries: int = Field(default=16, ge=1, description="queries of a round that each component is clocked in")
    timeout_s: float = Field(default=300.0, gt=0, description="longest wait for an engine to load or a turn to end")


@dataclass(frozen=True)
class Bench:
    """Inputs of a measurement that stay the same from round to round.

    Args:
        task: whose test split the samples are drawn from, seeded; or the samples.
        threads: most intra-op threads of a component.
        asked: the times to measure.
        settings: length and precision.
        worker: what starts a process.
    """

    task: TaskSpec | Samples
    threads: int
    asked: LatencyAsked = field(default_factory=LatencyAsked)
    settings: LatencySettings = field(default_factory=LatencySettings)
    worker: Callable[..., WorkerProcess] = WorkerProcess

    @cached_property
    def samples(self) -> Samples:
        """The queries' images and texts, for every worker to load."""
        if not isinstance(self.task, TaskSpec):
            return self.task
        return draw_samples(self.task, self.settings.samples, self.settings.seed)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every worker: sizes of the thread pools of numpy's BLAS and OpenMP, and their spinning."""
        return {"OMP_NUM_THREADS": str(self.threads), "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def start(self, engine: Engine) -> WorkerProcess:
        """A fresh process for an engine, nothing loaded yet."""
        name = f"{engine.role} engine {engine.folder}"
        return self.worker(name, timeout_s=self.settings.timeout_s, environment=self.environment)

    def load(self, engine: Engine, cpus: list[int] | None) -> dict[str, Any]:
        """The request that loads it."""
        folder = str(engine.folder)
        return {"do": "load", "folder": folder, "threads": self.threads, "samples": self.samples, "cpus": cpus}

    def pinned(self, engines: Sequence[Engine], before: Mapping[int, int]) -> list[int] | None:
        """The CPUs of this round, one for each thread; None for engines on a GPU, whose driver has its own threads."""
        manifests = [read_manifest(engine.folder) for engine in engines]
        on_gpu = any(manifest.engine is not None and backend(manifest.engine.name).on_gpu for manifest in manifests)
        if on_gpu or not self.settings.pin:
            return None
        components = [component for manifest in manifests for component in manifest.components.values()]
        threads = max(min(self.threads, component.threads or self.threads) for component in components)
        return quiet_cpus(threads, before, idle_ticks())


def take_rounds(
    engines: Sequence[Engine], bench: Bench, bar: Ticker, is_open: Callable[[Rounds], bool] = lambda _: False
) -> Rounds:
    """Take rounds until there are enough: see :class:`LatencySettings`. ``is_open``: do they leave a verdict open?"""
    settings = bench.settings
    rounds = Rounds(list(engines))
    needed = max(fewest_queries(quantile) for quantile in bench.asked.percentiles)
    began, ends = time.monotonic(), time.monotonic() + settings.patience
    elapsed = 0.0
    while not rounds.stopped:
        _round(rounds, bench, math.ceil(needed / settings.look_rounds), ends)
        before, elapsed = elapsed, time.monotonic() - began
        note = f"{rounds.queries} queries in {len(rounds)} rounds"
        if rounds.next_look is not None:
            note += f"; a verdict is open, at most {min(settings.open_seconds, settings.patience):g} s"
        bar.advance(min(elapsed, settings.seconds) - min(before, settings.seconds), note=note)
        rounds.stopped = _why_stop(rounds, bench, needed, elapsed, is_open)
    return rounds


def _why_stop(rounds: Rounds, bench: Bench, needed: int, elapsed: float, is_open: Callable[[Rounds], bool]) -> str:
    """The reason to stop after this round, or "". An open verdict is looked at again after twice the rounds."""
    settings = bench.settings
    if elapsed >= settings.patience:
        return f"its cap of {settings.patience:g} s had passed"
    if rounds.queries < needed:
        return ""
    if rounds.next_look is not None and elapsed >= settings.open_seconds:
        return f"a verdict was open and {settings.open_seconds:g} s had passed"
    if len(rounds) < max(settings.look_rounds, rounds.next_look or 0):
        return ""
    if rounds.next_look is not None:
        why = "the verdict was decided"
    elif len(rounds) % settings.look_rounds == 0 and _is_precise(rounds, bench):
        why = "every interval was narrow enough"
    elif elapsed >= settings.seconds:
        why = f"{settings.seconds:g} s had passed"
    else:
        return ""
    if is_open(rounds):
        rounds.next_look = 2 * len(rounds)
        return ""
    return why


def _is_precise(rounds: Rounds, bench: Bench) -> bool:
    """True if every speed-up's interval is narrow enough; for one engine alone, the latency's own interval."""
    *before, candidate = rounds.engines
    for quantile in bench.asked.percentiles:
        if before:
            found = speedup(before[0], candidate, quantile).estimate
        else:
            found = round_percentile(candidate.times, quantile)
        wanted = bench.settings.precision if quantile == 0.5 else bench.settings.tail_precision
        if found is None or max(found.high / found.value, found.value / found.low) > 1 + wanted:
            return False
    return True


def _round(rounds: Rounds, bench: Bench, least: int, ends: float) -> None:
    """One round: start and load, warm up, take turns, and then what is asked beside the latency."""
    engines = rounds.engines
    order = list(reversed(engines)) if len(rounds) % 2 else list(engines)
    idle = idle_ticks()
    with ExitStack() as stack:
        workers = {engine.role: stack.enter_context(bench.start(engine)) for engine in order}
        cpus = bench.pinned(engines, idle)
        for engine in order:
            workers[engine.role].send(**bench.load(engine, cpus))
        for engine in order:
            workers[engine.role].reply()
        medians = [_warm_up(engine, workers[engine.role], bench.settings) for engine in order]
        rounds.cpus.append(cpus)
        _turns(rounds, order, workers, bench, (max(medians), least, ends))
        for engine in engines:
            engine.peaks_mb.append(float(workers[engine.role].ask(do="memory")["peak_rss_mb"]))
        _beside(engines[-1], workers[engines[-1].role], bench)


def _warm_up(engine: Engine, worker: WorkerProcess, settings: LatencySettings) -> float:
    """Query until two windows in a row are not faster than the fastest before; the last window's median in ms.

    Engines get faster while they warm up; noise only slows. So a slower window is no reason to go on.
    """
    ends = time.monotonic() + settings.warmup_seconds
    best, median, steady, windows = math.inf, math.inf, 0, 0
    while steady < 2:
        median = statistics.median(_query(worker, WARMUP_QUERIES))
        steady = 0 if median < best * (1 - FASTER) else steady + 1
        best, windows = min(best, median), windows + 1
        if time.monotonic() >= ends:
            break
    engine.stationary.append(steady >= 2)
    engine.warmup_queries.append(windows * WARMUP_QUERIES)
    return median


def _turns(
    rounds: Rounds,
    order: Sequence[Engine],
    workers: Mapping[str, WorkerProcess],
    bench: Bench,
    limits: tuple[float, int, float],
) -> None:
    """Blocks of queries in turns, A B B A ..., until the round's time is over and ``least`` queries are counted.

    ``limits``: the slower engine's median in ms, ``least``, and the time at which all measuring ends.
    """
    slowest_ms, least, ends = limits
    few, many = BLOCK_QUERIES
    count = min(many, max(few, round(1e3 * bench.settings.block_seconds / slowest_ms)))
    taken: dict[str, list[Block]] = {engine.role: [] for engine in order}
    until = time.monotonic() + bench.settings.round_seconds
    start, blocks = len(rounds) * count, 0
    while blocks == 0 or blocks % 2 or time.monotonic() < until or blocks * count < least:
        for engine in order if blocks % 2 == 0 else reversed(order):
            reply = workers[engine.role].ask(do="run", start=start, count=UNCOUNTED + count)
            disturbed = disturbed_queries(reply["ms"], reply["interrupted"])
            taken[engine.role].append(Block(reply["ms"][UNCOUNTED:], disturbed[UNCOUNTED:]))
        start, blocks = start + count, blocks + 1
        if time.monotonic() >= ends:
            break
    for engine in order:
        engine.blocks.append(taken[engine.role])
    rounds.blocks.append(blocks)
    rounds.block_queries.append(count)


def _beside(engine: Engine, worker: WorkerProcess, bench: Bench) -> None:
    """Components and throughput: after the timed queries, so that those stay untouched."""
    components = worker.ask(do="profile", start=0, count=bench.settings.profile_queries)["components"]
    for name, times in components.items():
        engine.components.setdefault(name, []).append(times)
    if bench.asked.batch is not None:
        seconds = bench.settings.batch_seconds
        engine.batches.append(worker.ask(do="batch", size=bench.asked.batch, seconds=seconds)["ms"])


def _query(worker: WorkerProcess, count: int) -> list[float]:
    times: list[float] = worker.ask(do="run", start=0, count=count)["ms"]
    return times


def cold_starts(engine: Engine, bench: Bench) -> list[float]:
    """Milliseconds from the start of loading to the first answer, in fresh processes one after another."""
    times = []
    for _ in range(bench.settings.cold_starts):
        idle = idle_ticks()
        with bench.start(engine) as worker:
            loaded_ms = worker.ask(**bench.load(engine, bench.pinned([engine], idle)))["ms"]
            times.append(float(loaded_ms) + _query(worker, 1)[0])
    return times
