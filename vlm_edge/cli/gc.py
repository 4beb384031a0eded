"""``vlm-edge gc``: remove artifacts that no run refers to from the store."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict

import click

from vlm_edge.cli.ls import find_runs
from vlm_edge.cli.settings import Settings, echo, json_option, pass_settings, print_json
from vlm_edge.core.store import Garbage, Store
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import alone_in


@click.command()
@click.option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
@json_option
@pass_settings
def gc(settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Remove artifacts that no record under the runs folder names, and the leftovers of unfinished stage runs.

    Of an interrupted run the variants that were measured stay: run it again first if stages beyond those are to stay.
    """
    if not settings.store.is_dir():
        raise VlmEdgeError(f"{settings.store}: no such store", "give the one that a run used with --store")
    runs, unreadable = find_runs(settings.runs)
    if unreadable:
        raise VlmEdgeError(
            f"{unreadable[0]}; its artifacts are unknown, so nothing was removed",
            "mend or remove that record, then run gc again",
        )
    referenced = {digest for run in runs for digest in run.digests}
    store = Store(settings.store)
    stages = {record.digest: record.identity.get("stage", "?") for record in store.records()}
    garbage = store.collect(referenced, dry_run=dry_run)
    if not dry_run:
        for lock in settings.runs.glob("*/.lock"):
            with suppress(BlockingIOError), alone_in(lock.parent, None):  # alone: what killed writes left is removed
                pass
    if as_json:
        print_json({"dry_run": dry_run, **asdict(garbage)})
        return
    echo(_summary(garbage, dry_run))
    for digest in garbage.artifacts:
        echo(f"  {digest[:12]} {stages.get(digest, 'without a record')}")


def _summary(garbage: Garbage, dry_run: bool) -> str:
    verb = "would remove" if dry_run else "removed"
    parts = (
        (len(garbage.artifacts), "artifacts"),
        (len(garbage.measurements), "cached measurements"),
        (len(garbage.scratch), "unfinished stage runs"),
        (garbage.temporary, "temporary files"),
    )
    counts = ", ".join(f"{count} {name}" for count, name in parts)
    return f"{verb} {counts}: {garbage.size_bytes / 1e6:,.1f} MB ({garbage.size_bytes} bytes)"
