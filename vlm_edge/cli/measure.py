"""``vlm-edge evaluate`` and ``bench``: the accuracy and the latency of an engine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlm_edge.cli.answer import bundle_folder
from vlm_edge.cli.settings import Settings, echo, gathered, json_option, pass_settings, print_json, stdout_console
from vlm_edge.errors import UsageError
from vlm_edge.machine import usable_cpus

if TYPE_CHECKING:
    from vlm_edge.core.measurement import LatencyAsked


@dataclass(frozen=True)
class _Engines:
    engine: Path
    baseline: Path | None
    control: bool

    def folders(self) -> tuple[Path | None, Path]:
        """The baseline's folder, if there is one, and the candidate's.

        Raises:
            UsageError: two baselines are asked for.
        """
        if self.control and self.baseline is not None:
            raise UsageError("--control measures ENGINE against itself, --baseline against another", "give one of them")
        candidate = bundle_folder(self.engine)
        other = bundle_folder(self.baseline) if self.baseline is not None else None
        return candidate if self.control else other, candidate


@dataclass(frozen=True)
class _Wanted:
    percentiles: tuple[float, ...]
    batch: int | None
    cold_start: bool
    price_per_hour: float | None

    @property
    def asked(self) -> LatencyAsked:
        from vlm_edge.core.measurement import LatencyAsked

        shares = tuple(percent / 100 for percent in self.percentiles)
        return LatencyAsked(percentiles=shares, batch=self.batch, cold_start=self.cold_start)


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Manifest of the task's data.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Another engine, measured in turns with ENGINE.")
@click.option(
    "--control",
    is_flag=True,
    help="Measure ENGINE against itself, for the smallest difference that this host can show.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each engine.  [default: ENGINE's own]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    help="Time to measure; it ends before when every interval is narrow enough (p50 1.5%, others 5%).",
)
@click.option(
    "--percentile",
    "percentiles",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    multiple=True,
    default=(50.0, 90.0),
    show_default=True,
    help="May be repeated. p90 takes 64 queries of each engine, p99 662; one with fewer is left out.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Measure the throughput at this many images at once, too.")
@click.option("--cold-start", is_flag=True, help="Measure the time from loading to the first answer, too.")
@click.option(
    "--price-per-hour",
    type=click.FloatRange(min=0, min_open=True),
    help="Price of the machine, for the cost of 1,000 images; with --batch.",
)
@json_option
@pass_settings
@gathered(_Engines, "engines")
@gathered(_Wanted, "wanted")
def bench(
    settings: Settings,
    engines: _Engines,
    data: Path,
    threads: int | None,
    seconds: float,
    wanted: _Wanted,
    as_json: bool,
) -> None:
    """Measure the latency of ENGINE at batch 1: an RGB image (and a text) in, the answer out.

    With --baseline both engines run in a process each and take turns, so that a slow moment of the machine slows
    both. The time in each component comes from queries of its own. ENGINE is a folder that `export`, `quantize` or
    `compile` wrote, a bundle, or a run's folder.
    """
    from vlm_edge.api import find_task
    from vlm_edge.core.measurement import PATIENCE_S, with_cost
    from vlm_edge.evaluation.latency import Bench, LatencySettings, measure_latency
    from vlm_edge.processing.manifest import read_manifest
    from vlm_edge.report.table import measurements_table

    against, candidate = engines.folders()
    info = read_manifest(candidate).engine
    with settings.working() as progress:
        threads = threads or (info.threads if info else usable_cpus())
        length = LatencySettings(seconds=seconds, patience=max(seconds, PATIENCE_S))
        how = Bench(find_task(data), threads, wanted.asked, length)
        timed = measure_latency(against, candidate, how, progress=progress)
    timed = timed.model_copy(update={"measurements": with_cost(timed.measurements, wanted.price_per_hour)})
    if as_json:
        print_json(timed.model_dump(mode="json"))
    else:
        stdout_console().print(measurements_table(timed.measurements))


@dataclass(frozen=True)
class _Effort:
    limit: int | None
    threads: int | None


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Manifest of the task's data.")
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="Another engine: also measure ENGINE's drop against it, paired."
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Measure on this many samples, drawn with a fixed seed.  [default: all]"
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each engine.  [default: the engine's own]")
@click.option("--outcomes", type=click.Path(path_type=Path), help="Also write every sample's outcome to this file.")
@json_option
@pass_settings
@gathered(_Effort, "effort")
def evaluate(
    settings: Settings,
    engine: Path,
    data: Path,
    baseline: Path | None,
    effort: _Effort,
    outcomes: Path | None,
    as_json: bool,
) -> None:
    """Measure the accuracy of ENGINE on the test split of the data: every metric of the task, whole and by slice.

    With --baseline also each metric's drop, paired sample by sample, and the similarity of embeddings or tokens.

    ENGINE is a folder that `export`, `quantize` or `compile` wrote, a bundle, or a run's folder. Images that can't be
    read are left out, named and counted; more than 1% of them is an error.
    """
    from vlm_edge.api import find_task
    from vlm_edge.evaluation.accuracy import compare, describe
    from vlm_edge.evaluation.accuracy import evaluate as measure
    from vlm_edge.files import write_atomically
    from vlm_edge.report.table import measurements_table

    with settings.working() as progress:
        task = find_task(data)
        found = measure(bundle_folder(engine), task, threads=effort.threads, limit=effort.limit, progress=progress)
        if baseline is None:
            measurements = describe(found)
        else:
            other = bundle_folder(baseline)
            against = measure(other, task, threads=effort.threads, limit=effort.limit, progress=progress)
            measurements = compare(against, found)
    if outcomes is not None:
        write_atomically(outcomes, (json.dumps(found.to_json(), indent=1) + "\n").encode())
    skipped = [each.model_dump() for each in found.skipped]
    if as_json:
        rows = [each.model_dump() for each in measurements]
        print_json({"measurements": rows, "skipped": skipped, "notes": list(found.notes)})
        return
    stdout_console().print(measurements_table(measurements))
    for note in found.notes:
        echo(f"note: {note}")
    for sample in found.skipped:
        echo(f"skipped: {sample.id}: {sample.image}: {sample.reason}")
