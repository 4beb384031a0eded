"""``vlm-edge bench``: the end-to-end latency of an engine, alone or against another."""

from __future__ import annotations

import os
from pathlib import Path

import click

from vlm_edge.cli.answer import bundle_folder
from vlm_edge.cli.settings import Settings, json_option, pass_settings, print_json, stdout_console


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Manifest of the task's data.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Another engine, measured in turns with ENGINE.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each engine.  [default: ENGINE's own]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=20.0,
    show_default=True,
    help="Longest time to measure; it ends before when the 95% interval is within 2%.",
)
@click.option(
    "--percentile",
    "percentiles",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    multiple=True,
    default=(50.0, 90.0, 99.0),
    show_default=True,
    help="May be repeated. One that has too few queries is left out.",
)
@json_option
@pass_settings
def bench(
    settings: Settings,
    engine: Path,
    data: Path,
    baseline: Path | None,
    threads: int | None,
    seconds: float,
    percentiles: tuple[float, ...],
    as_json: bool,
) -> None:
    """Measure the latency of ENGINE at batch 1: an RGB image (and a question) in, the answer out.

    With --baseline both engines run in a process each and take turns, so that what slows the machine down slows both
    down. ENGINE is a folder that `export`, `quantize` or `compile` wrote, a bundle, or a run's folder.
    """
    from vlm_edge.api import find_task
    from vlm_edge.evaluation.host import host_record
    from vlm_edge.evaluation.latency import LatencySettings, measure_latency
    from vlm_edge.processing.manifest import read_manifest
    from vlm_edge.report.table import measurements_table

    candidate = bundle_folder(engine)
    info = read_manifest(candidate).engine
    threads = threads or (info.threads if info else os.cpu_count() or 1)
    how = LatencySettings(
        percentiles=tuple(percent / 100 for percent in percentiles), seconds=seconds, max_seconds=seconds
    )
    with settings.working() as progress:
        measurements = measure_latency(
            bundle_folder(baseline) if baseline else candidate,
            candidate,
            find_task(data),
            threads=threads,
            settings=how,
            progress=progress,
        )
    if baseline is None:
        measurements = [each for each in measurements if not each.metric.endswith("_speedup")]
    if as_json:
        rows = [each.model_dump() for each in measurements]
        print_json({"measurements": rows, "threads": threads, "host": host_record()})
    else:
        stdout_console().print(measurements_table(measurements))
