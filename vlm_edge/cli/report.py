"""``vlm-edge report`` and ``compare``: the record of a run, or of several, for a person or a program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vlm_edge.cli.settings import Settings, echo, pass_settings, stdout_console
from vlm_edge.core.gate import find_variant
from vlm_edge.core.record import PREVIOUS_NAME, RECORD_NAME, read_record
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import write_atomically
from vlm_edge.report.escape import json_text


def form_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--format``, ``--json`` and ``-o``, as ``form``, ``as_json`` and ``output``."""
    output = "Write to this file, and print its path."
    command = click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help=output)(command)
    command = click.option("--json", "as_json", is_flag=True, help="The same as --format json.")(command)
    forms = click.Choice(["table", "markdown", "html", "json"])
    return click.option("--format", "form", type=forms, default="table", show_default=True, help="How to print it.")(
        command
    )


@click.command()
@click.argument("run")
@form_options
@click.option("--html", "as_html", is_flag=True, help="Write one HTML file that opens offline, and print its path.")
@pass_settings
def report(settings: Settings, run: str, form: str, as_json: bool, as_html: bool, output: Path | None) -> None:
    """Show the record of RUN: a name under the runs folder, a run's folder, or a run.json.

    With --html the page is written beside the record, as report.html, unless -o says where. The exit code is 0
    whatever the verdict: `vlm-edge run` and `vlm-edge gate` judge.
    """
    file = find_record(settings.runs, run)
    record = read_record(file)
    if as_html:
        form, output = "html", output or file.with_name("report.html")
    form = "json" if as_json else form
    if form == "table" and output is not None:
        raise click.UsageError("-o needs --html, --json or --format markdown: the table is for a terminal")
    if form == "json":
        write_text(json_text(record.model_dump(mode="json")), output)
        return
    if form == "table":
        from vlm_edge.report.table import run_summary, stages_table

        console = stdout_console()
        console.print(stages_table(record))
        console.print()
        console.print(run_summary(record, console), crop=False)
        return
    from vlm_edge.report.html import run_html
    from vlm_edge.report.markdown import run_markdown
    from vlm_edge.report.views import read_regressions

    regressions = read_regressions(file.parent) if file.name == RECORD_NAME else {}
    write_text((run_html if form == "html" else run_markdown)(record, regressions), output)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="A B [C...]")
@click.option("--variant", help="Compare this variant of each run.  [default: the one that decides the run]")
@form_options
@pass_settings
def compare(
    settings: Settings, runs: tuple[str, ...], variant: str | None, form: str, as_json: bool, output: Path | None
) -> None:
    """Show two or more runs side by side, with each one's change from the first.

    A run is a name under the runs folder, a run's folder, or a run.json. Task metrics are compared sample by sample
    where both runs kept their outcomes on the same data; other metrics say how they were compared, or why not. The
    exit code is 0 whatever differs: `vlm-edge gate --against` judges.
    """
    if len(runs) < 2:
        raise click.UsageError("give at least two runs")
    form = "json" if as_json else form
    if form == "table" and output is not None:
        raise click.UsageError("-o needs --json or --format markdown or html: the table is for a terminal")

    from vlm_edge.evaluation.change import Side, differences
    from vlm_edge.report.compare import compare_table, compared, compared_json
    from vlm_edge.report.html import compare_html
    from vlm_edge.report.markdown import compare_markdown

    sides = []
    for file in (find_record(settings.runs, run) for run in runs):
        record = read_record(file)
        sides.append(Side(record, find_variant(record, variant), file.parent))
    changes = [differences(sides[0], side) for side in sides[1:]]
    comparison = compared([(run, side.record, side.variant) for run, side in zip(runs, sides, strict=True)], changes)
    if form == "table":
        stdout_console().print(compare_table(comparison))
    elif form == "json":
        write_text(json_text(compared_json(comparison)), output)
    else:
        write_text((compare_html if form == "html" else compare_markdown)(comparison), output)


def write_text(text: str, output: Path | None) -> None:
    """Write a report to ``output`` and print the path; to stdout where it is None.

    Raises:
        VlmEdgeError: the file can't be written.
    """
    if output is None:
        click.echo(text, nl=False)
        return
    write_atomically(output, text.encode())
    echo(output)


def find_run(runs: Path, name: str) -> Path:
    """The folder of a run, or the file that is its record, by name, folder or file.

    Raises:
        VlmEdgeError: there is none, with the runs that there are.
    """
    for candidate in (runs / name, Path(name)):
        if candidate.is_file() or (candidate / RECORD_NAME).is_file():
            return candidate
    before = runs / name / PREVIOUS_NAME
    if before.is_file():
        raise VlmEdgeError(
            f"{name}: the last run did not end, so it has no record",
            f"run the recipe again to go on; `vlm-edge report {before}` shows the run before it",
        )
    from vlm_edge.names import near

    known = [path.parent.name for path in runs.glob(f"*/{RECORD_NAME}")]
    raise VlmEdgeError(f"{name}: no such run in {runs}; {near(name, known)}", "`vlm-edge ls` lists the runs")


def find_record(runs: Path, name: str) -> Path:
    """The file of the run's record; arguments and errors as :func:`find_run`."""
    place = find_run(runs, name)
    return place / RECORD_NAME if place.is_dir() else place
