"""``vlm-edge zoo``: the models that come with vlm-edge, and random ones of real sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vlm_edge.cli.settings import Settings, echo, json_option, pass_settings, print_json, stdout_console
from vlm_edge.core.artifact import folder_size_bytes
from vlm_edge.errors import VlmEdgeError


@click.group(invoke_without_command=True)
@click.pass_context
def zoo(ctx: click.Context) -> None:
    """List the models that come with vlm-edge, or create one of a real size with random weights."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_models)


@zoo.command("list")
@json_option
def list_models(as_json: bool = False) -> None:
    """List the models that come with vlm-edge (zoo:NAME in a recipe) and the sizes that `create` can make."""
    from vlm_edge.report.table import text_table
    from vlm_edge.zoo import SIZES, STUDENT_WEIGHTS, ZOO

    models = [_row(f"zoo:{name}", entry) for name, entry in ZOO.items()]
    students = [_row(f"zoo:{name}", entry) for name, entry in STUDENT_WEIGHTS.items()]
    if as_json:
        print_json({"models": models, "student_weights": students, "sizes": {k: list(v) for k, v in SIZES.items()}})
        return
    console = stdout_console()
    for title, rows in (("Models", models), ("Weights that distillation starts from", students)):
        if rows:
            megabytes = ["missing" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:,.1f}" for row in rows]
            cells = [(row["name"], size, row["summary"]) for row, size in zip(rows, megabytes, strict=True)]
            table = text_table(("name", "size, MB", "summary"), cells, {1})
            table.title, table.title_justify, table.columns[0].no_wrap = title, "left", True
            console.print(table)
            console.print()
    console.print("Random weights at real sizes, `vlm-edge zoo create NAME --size SIZE --out FOLDER`")
    for name, sizes in SIZES.items():
        console.print(f"  {name}: {', '.join(sizes)}", markup=False)


@zoo.command("create")
@click.argument("name")
@click.option("--size", required=True, help="One of the sizes that `vlm-edge zoo` lists for NAME.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder to write.  [default: ./NAME-SIZE]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the weights.")
@json_option
@pass_settings
def create_model(settings: Settings, name: str, size: str, out: Path | None, seed: int, as_json: bool) -> None:
    """Write a checkpoint of a real architecture at a real size with seeded random weights.

    For speed and parity work: it answers nonsense, but as fast and as large as a trained one.
    """
    from vlm_edge.names import near
    from vlm_edge.zoo import SIZES

    if name not in SIZES:
        raise VlmEdgeError(f"unknown model {name!r}; {near(name, SIZES)}", "`vlm-edge zoo` lists them")
    if size not in SIZES[name]:
        raise VlmEdgeError(f"{name} has no size {size!r}; {near(size, SIZES[name])}", "`vlm-edge zoo` lists them")
    folder = out or Path(f"{name}-{size}")
    with settings.working() as progress, progress.bar(f"{name} {size}", None):
        from vlm_edge.zoo.create import create

        create(name, size, folder, seed)
    total = folder_size_bytes(folder)
    if as_json:
        print_json({"out": str(folder), "size_bytes": total, "seed": seed})
    else:
        echo(f"{folder}: {total / 1e6:,.1f} MB, seed {seed}")


def _row(reference: str, entry: Any) -> dict[str, Any]:
    there = entry.folder.is_dir()
    size = folder_size_bytes(entry.folder) if there else None
    return {"name": reference, "size_bytes": size, "summary": entry.summary}
