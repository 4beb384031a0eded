"""``vlm-edge evaluate``: the accuracy of an engine on a task's test split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from vlm_edge.cli.answer import bundle_folder
from vlm_edge.cli.settings import Settings, echo, gathered, json_option, pass_settings, print_json, stdout_console


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
