"""``vlm-edge report``: the record of a run, for a person, a pull request or a program."""

from __future__ import annotations

from pathlib import Path

import click

from vlm_edge.cli.output import output_option, write_text
from vlm_edge.cli.settings import Settings, pass_settings, stdout_console
from vlm_edge.core.record import PREVIOUS_NAME, RECORD_NAME, RunRecord, read_record
from vlm_edge.errors import VlmEdgeError
from vlm_edge.report.escape import json_text


@click.command()
@click.argument("run")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "html", "json"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--html", "as_html", is_flag=True, help="Write one HTML file that opens offline, and print its path.")
@output_option
@pass_settings
def report(settings: Settings, run: str, form: str, as_json: bool, as_html: bool, output: Path | None) -> None:
    """Show the record of RUN: a name under the runs folder, a run's folder, or a run.json.

    With --html the page is written beside the record, as report.html, unless -o says where. The exit code is 0
    whatever the verdict: `vlm-edge run` and `vlm-edge gate` judge.
    """
    place = find_run(settings.runs, run)
    file = place / RECORD_NAME if place.is_dir() else place
    record = read_record(file)
    if as_html:
        form, output = "html", output or file.with_name("report.html")
    form = "json" if as_json else form
    if form == "table":
        if output is not None:
            raise click.UsageError("-o needs --html, --json or --format markdown: the table is for a terminal")
        _print_table(record)
    else:
        write_text(_text(record, file, form), output)


def _text(record: RunRecord, file: Path, form: str) -> str:
    """The record in one of the forms that a file may have."""
    if form == "json":
        return json_text(record.model_dump(mode="json"))
    from vlm_edge.report.views import read_regressions

    regressions = read_regressions(file.parent) if file.name == RECORD_NAME else {}
    if form == "html":
        from vlm_edge.report.html import run_html

        return run_html(record, regressions)
    from vlm_edge.report.markdown import run_markdown

    return run_markdown(record, regressions)


def _print_table(record: RunRecord) -> None:
    from vlm_edge.report.table import run_summary, stages_table

    console = stdout_console()
    console.print(stages_table(record))
    console.print()
    console.print(run_summary(record, console), crop=False)


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
