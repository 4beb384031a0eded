"""``vlm-edge run``: run a whole recipe; the exit code is the verdict."""

from __future__ import annotations

from pathlib import Path

import click

from vlm_edge.cli.ci import EXIT_CODES, Published, ci_options, publishing
from vlm_edge.cli.settings import (
    Settings,
    find_recipe,
    gathered,
    json_option,
    pass_settings,
    print_json,
    stdout_console,
)
from vlm_edge.core.gate import gate_of
from vlm_edge.core.measurement import PATIENCE_S, Timing
from vlm_edge.core.record import RECORD_NAME, RunRecord


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--remeasure",
    is_flag=True,
    help="Measure latencies again though the store has them, as after a run on a busy machine.",
)
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(min=0, min_open=True, max=86_400),
    default=PATIENCE_S,
    show_default=True,
    help="Most seconds to measure one variant's latency for, while its verdict is open.",
)
@json_option
@pass_settings
@click.pass_context
@gathered(Timing, "timing")
@ci_options
def run(ctx: click.Context, settings: Settings, recipe: Path, timing: Timing, ci: Published, as_json: bool) -> None:
    """Run RECIPE: make every variant of its ladder, measure it and judge it against the budgets.

    Finished stages come from the store, so an interrupted run goes on when it is run again. Each variant is shown and
    written to RUNS/NAME/run.json as it is measured, marked incomplete until the run ends; the best engine goes to
    RUNS/NAME/bundle. Exit codes: 0 every budget met, 3 one missed,
    4 undecided, 5 not measured; 1 an error, 2 a faulty recipe.
    """
    from vlm_edge.api import run_recipe
    from vlm_edge.report.ladder import row_text

    so_far: list[RunRecord] = []
    with publishing(recipe.stem, ci) as publish:
        try:
            with settings.working() as progress:

                def measured(record: RunRecord) -> None:
                    so_far[:] = [record]
                    progress.remark(row_text(record))

                record = run_recipe(
                    find_recipe(recipe),
                    store=settings.store,
                    runs=settings.runs,
                    progress=progress,
                    timing=timing,
                    measured=measured,
                    toolbox=settings.toolbox,
                )
        except BaseException:
            if so_far:
                place = settings.runs / so_far[0].name
                settings.remark(f"the variants that were measured before the run ended: `vlm-edge report {place}`")
            raise
        publish(record, gate_of(record))
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        print_summary(record, settings.runs / record.name)
    ctx.exit(EXIT_CODES[record.verdict])


def print_summary(record: RunRecord, folder: Path) -> None:
    """Print the end of a run: its ladder, its verdict, its files, and what to do with a build kit."""
    from vlm_edge.cli.output import kit_lines
    from vlm_edge.report.table import run_summary

    console = stdout_console()
    console.print(run_summary(record, console), crop=False)
    console.print(f"record: {folder / RECORD_NAME}", soft_wrap=True, markup=False)
    bundle = folder / "bundle"
    if bundle.is_dir():
        console.print(f"bundle: {bundle} ({record.best or record.decided_by})", soft_wrap=True, markup=False)
    unmeasured = record.variants[-1].unmeasured
    if (folder / "kit").is_dir() and unmeasured is not None:
        for line in kit_lines(folder, unmeasured):
            console.print(line, soft_wrap=True, markup=False)
