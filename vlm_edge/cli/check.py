"""``vlm-edge check``: every fault of a recipe at once, without running it."""

from __future__ import annotations

from pathlib import Path

import click

from vlm_edge.cli.settings import Settings, echo, find_recipe, json_option, pass_settings, print_json
from vlm_edge.errors import RecipeError


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
