"""``vlm-edge check``, ``plan`` and ``run``: the faults of a recipe, its stage runs, and the run of all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlm_edge.cli.ci import EXIT_CODES, Published, ci_options, publishing
from vlm_edge.cli.settings import (
    Settings,
    echo,
    find_recipe,
    gathered,
    json_option,
    kit_lines,
    pass_settings,
    print_json,
    stdout_console,
)
from vlm_edge.core.gate import gate_of
from vlm_edge.core.measurement import PATIENCE_S, Timing
from vlm_edge.core.record import RECORD_NAME, RunRecord
from vlm_edge.errors import RecipeError
from vlm_edge.report.escape import on_terminal

if TYPE_CHECKING:
    from vlm_edge.core.plan import PlannedRun


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@json_option
@pass_settings
def check(settings: Settings, recipe: Path, as_json: bool) -> None:
    """Check RECIPE without running it: its keys, model, data and target, and whether they fit together.

    Every fault is listed with its place, and the exit code is 2. Images are read (at most 2,000 of a split): those that
    a run would leave out are named. A few of them go through transformers' image processor and through ours, which must
    give the same pixels. With --json the resolved recipe is printed, or the list of faults.
    """
    from vlm_edge.api import check_recipe

    try:
        with settings.working() as progress:
            checked = check_recipe(find_recipe(recipe), progress=progress, toolbox=settings.toolbox)
    except RecipeError as error:
        if as_json:
            print_json({"faults": error.faults, "notes": [], "recipe": None})
        raise
    if as_json:
        print_json({"faults": [], "notes": checked.notes, "recipe": checked.resolved()})
        return
    for note in checked.notes:
        echo(f"note: {note}")
    names = ", ".join(entry.name for entry in checked.stages)
    echo(f"{recipe}: no faults; {checked.model} for {checked.target.name}: {names}")


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@json_option
@pass_settings
def plan(settings: Settings, recipe: Path, as_json: bool) -> None:
    """List the stage runs of RECIPE in order, and which of them the store already has.

    A stage run whose input has yet to be made can't be looked up: it is listed as waiting. Its time is that of the
    latest run of the stage in this store, with the same settings if there is one.
    """
    from vlm_edge.api import plan_recipe
    from vlm_edge.report.table import text_table

    with settings.working():
        planned = plan_recipe(find_recipe(recipe), settings.store, toolbox=settings.toolbox)
    if as_json:
        print_json([asdict(row) for row in planned])
        return
    rows, before = [], None
    for row in planned:
        state = "in the store" if row.cached else "to run" if row.key else "to run, waits for its input"
        stage = f"{row.stage} (implied)" if row.implied else row.stage
        variant, key = "" if row.variant == before else row.variant, row.key[:12] if row.key else ""
        about = "took" if row.cached else "about"
        time = "not known yet" if row.seconds is None else f"{about} {row.seconds:,.0f} s"
        rows.append((variant, stage, state, time, key))
        before = row.variant
    console = stdout_console()
    console.print(text_table(("variant", "stage", "state", "time", "key"), on_terminal(rows)))
    done = sum(row.cached for row in planned)
    console.print(f"\n{len(planned)} stage runs, {done} in the store, {len(planned) - done} to run{_total(planned)}")


def _total(planned: Sequence[PlannedRun]) -> str:
    """The known time of the stage runs to do, without measuring; empty where none is known."""
    known = [row.seconds for row in planned if not row.cached and row.seconds is not None]
    unknown = sum(not row.cached and row.seconds is None for row in planned)
    if not known:
        return ""
    rest = f", and {unknown} of unknown time" if unknown else ""
    return f" in about {sum(known):,.0f} s{rest}; measuring a variant's latency takes 15 s to the --patience of `run`"


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
