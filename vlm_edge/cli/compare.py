"""``vlm-edge compare``: runs side by side."""

from __future__ import annotations

from pathlib import Path

import click

from vlm_edge.cli.output import output_option, write_text
from vlm_edge.cli.report import find_run
from vlm_edge.cli.settings import Settings, pass_settings, stdout_console
from vlm_edge.core.gate import find_variant
from vlm_edge.core.record import RECORD_NAME, read_record
from vlm_edge.report.escape import json_text


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="A B [C...]")
@click.option("--variant", help="Compare this variant of each run.  [default: the one that decides the run]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "html", "json"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@output_option
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

    from vlm_edge.evaluation.change import Side
    from vlm_edge.evaluation.side_by_side import differences
    from vlm_edge.report.compare import compare_table, compared, compared_json

    sides = []
    for run in runs:
        place = find_run(settings.runs, run)
        file = place / RECORD_NAME if place.is_dir() else place
        record = read_record(file)
        sides.append(Side(record, find_variant(record, variant), file.parent))
    changes = [differences(sides[0], side) for side in sides[1:]]
    comparison = compared([(run, side.record, side.variant) for run, side in zip(runs, sides, strict=True)], changes)
    if form == "json":
        write_text(json_text(compared_json(comparison)), output)
    elif form == "markdown":
        from vlm_edge.report.markdown import compare_markdown

        write_text(compare_markdown(comparison), output)
    elif form == "html":
        from vlm_edge.report.html import compare_html

        write_text(compare_html(comparison), output)
    else:
        stdout_console().print(compare_table(comparison))
