"""``vlm-edge plan``: the stage runs of a recipe, and which of them the store already has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlm_edge.cli.settings import Settings, find_recipe, json_option, pass_settings, print_json, stdout_console
from vlm_edge.report.escape import terminal

if TYPE_CHECKING:
    from vlm_edge.core.plan import PlannedRun


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@json_option
@pass_settings
def plan(settings: Settings, recipe: Path, as_json: bool) -> None:
    """List the stage runs of RECIPE in order, and which of them the store already has.

    A stage run whose input has yet to be made can't be looked up: it is listed as waiting. Its time is that of the
    latest run of the stage in this store, with the same settings if there is one.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from vlm_edge.api import plan_recipe

    with settings.working():
        planned = plan_recipe(find_recipe(recipe), settings.store, toolbox=settings.toolbox)
    if as_json:
        print_json([asdict(row) for row in planned])
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("variant", "stage", "state", "time", "key"):
        table.add_column(title)
    before = None
    for row in planned:
        state = "in the store" if row.cached else "to run" if row.key else "to run, waits for its input"
        stage = f"{row.stage} (implied)" if row.implied else row.stage
        variant, key = "" if row.variant == before else row.variant, row.key[:12] if row.key else ""
        table.add_row(*(Text(terminal(cell)) for cell in (variant, stage, state, _time(row), key)))
        before = row.variant
    console = stdout_console()
    console.print(table)
    done = sum(row.cached for row in planned)
    console.print(f"\n{len(planned)} stage runs, {done} in the store, {len(planned) - done} to run{_total(planned)}")


def _time(row: PlannedRun) -> str:
    if row.seconds is None:
        return "not known yet"
    return f"took {row.seconds:,.0f} s" if row.cached else f"about {row.seconds:,.0f} s"


def _total(planned: Sequence[PlannedRun]) -> str:
    """The known time of the stage runs to do, without measuring; empty where none is known."""
    known = [row.seconds for row in planned if not row.cached and row.seconds is not None]
    unknown = sum(not row.cached and row.seconds is None for row in planned)
    if not known:
        return ""
    rest = f", and {unknown} of unknown time" if unknown else ""
    return f" in about {sum(known):,.0f} s{rest}; measuring a variant's latency takes 15 s to the --patience of `run`"
