"""``vlm-edge report``: the record of a run, for a person, a pull request or a program."""

from __future__ import annotations

from pathlib import Path

import click

from vlm_edge.cli.settings import Settings, pass_settings, print_json, stdout_console
from vlm_edge.core.record import PREVIOUS_NAME, RECORD_NAME, RunRecord, read_record
from vlm_edge.errors import VlmEdgeError


@click.command()
@click.argument("run")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "json"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@pass_settings
def report(settings: Settings, run: str, form: str, as_json: bool) -> None:
    """Show the record of RUN: a name under the runs folder, a run's folder, or a run.json.

    The exit code is 0 whatever the verdict: `vlm-edge run` is what judges.
    """
    record = find_record(settings.runs, run)
    if as_json or form == "json":
        print_json(record.model_dump(mode="json"))
    elif form == "markdown":
        from vlm_edge.report.markdown import run_markdown

        click.echo(run_markdown(record), nl=False)
    else:
        from vlm_edge.report.table import run_summary, stages_table

        console = stdout_console()
        console.print(stages_table(record))
        console.print()
        console.print(run_summary(record, console), crop=False)


def find_record(runs: Path, name: str) -> RunRecord:
    """The record of a run by name, folder or file.

    Raises:
        VlmEdgeError: there is none, with the runs that there are; or it can't be read.
    """
    return read_record(find_run(runs, name))


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
