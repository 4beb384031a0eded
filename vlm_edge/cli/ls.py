"""``vlm-edge ls`` and ``gc``: the runs and the artifacts in the store, listed and removed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vlm_edge.cli.settings import Settings, echo, json_option, pass_settings, print_json, stdout_console
from vlm_edge.core.artifact import folder_size_bytes
from vlm_edge.core.record import PREVIOUS_NAME, RECORD_NAME, RunRecord, read_record
from vlm_edge.core.store import Garbage, Store
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import alone_in
from vlm_edge.report.escape import on_terminal


@click.command()
@json_option
@pass_settings
def ls(settings: Settings, as_json: bool) -> None:
    """List the runs, and the artifacts in the store with their size, age and the runs that refer to them."""
    found, unreadable = find_runs(settings.runs)
    runs = [_run_row(run) for run in found]
    artifacts = _artifact_rows(settings.store, found)
    size = sum(row["size_bytes"] for row in artifacts)
    for fault in unreadable:
        settings.remark(f"warning: {fault}")
    if as_json:
        print_json({"runs": runs, "artifacts": artifacts, "size_bytes": size})
        return
    from vlm_edge.report.table import text_table

    console, now = stdout_console(), datetime.now(UTC)
    if runs:
        cells = on_terminal([_run_cells(row, now) for row in runs])
        console.print(text_table(("run", "verdict", "variants", "best", "age"), cells, {2, 4}))
    else:
        console.print(f"no runs in {settings.runs}; `vlm-edge run RECIPE` makes one", soft_wrap=True, markup=False)
    console.print()
    if artifacts:
        cells = on_terminal([_artifact_cells(row, now) for row in artifacts])
        console.print(text_table(("artifact", "kind", "made by", "size, MB", "age", "runs"), cells, {3, 4}))
        console.print()
    total = f"{len(artifacts)} artifacts in {settings.store}: {size / 1e6:,.1f} MB"
    console.print(total, soft_wrap=True, markup=False)


@dataclass(frozen=True)
class FoundRun:
    """A run's record; ``ended`` is False where the last run did not end.

    It is an incomplete record then, or that of the run before. ``digests`` are those of both.
    """

    record: RunRecord
    ended: bool
    digests: frozenset[str]


def find_runs(runs: Path) -> tuple[list[FoundRun], list[str]]:
    """Every run under a folder, oldest first, and the faults of records that can't be read."""
    found, faults = [], []
    for folder in sorted(path for path in runs.glob("*") if path.is_dir()):
        paths = [folder / name for name in (RECORD_NAME, PREVIOUS_NAME) if (folder / name).is_file()]
        try:
            records = [read_record(path) for path in paths[:1]]
            ended = bool(records) and paths[0].name == RECORD_NAME and records[0].incomplete is None
            records += [read_record(path) for path in paths[1:] if not ended]
        except VlmEdgeError as error:
            faults.append(error.message)
            continue
        if records:
            digests = frozenset(digest for record in records for digest in record.digests())
            found.append(FoundRun(records[0], ended, digests))
    return sorted(found, key=lambda run: run.record.started), faults


def age_text(since: str, now: datetime) -> str:
    """``3 min``, ``5 h``, ``2 days`` from an ISO timestamp."""
    seconds = (now - datetime.fromisoformat(since)).total_seconds()
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size or (unit != "days" and seconds >= size):
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _run_row(run: FoundRun) -> dict[str, Any]:
    """A run as JSON values; ``verdict`` is None where the last run did not end."""
    record = run.record
    return {
        "name": record.name,
        "ended": run.ended,
        "verdict": record.verdict.value if run.ended else None,
        "variants": [variant.name for variant in record.variants],
        "best": record.best,
        "started": record.started,
    }


def _artifact_rows(root: Path, runs: list[FoundRun]) -> list[dict[str, Any]]:
    """One row per sealed artifact, oldest first; the same content made by two stage runs is one row."""
    if not root.is_dir():
        return []
    users: dict[str, set[str]] = {}
    for run in runs:
        for digest in run.digests:
            users.setdefault(digest, set()).add(run.record.name)
    store, rows = Store(root), {}
    for found in store.records():
        folder = store.objects / found.digest
        if folder.is_dir():
            rows[found.digest] = {
                "digest": found.digest,
                "kind": found.kind.value,
                "stage": found.identity.get("stage"),
                "size_bytes": folder_size_bytes(folder),
                "created": found.created,
                "runs": sorted(users.get(found.digest, ())),
            }
    return list(rows.values())


def _run_cells(row: dict[str, Any], now: datetime) -> list[str]:
    age = age_text(row["started"], now)
    verdict = row["verdict"].replace("_", " ") if row["ended"] else "did not end"
    return [row["name"], verdict, str(len(row["variants"])), row["best"] or "-", age]


def _artifact_cells(row: dict[str, Any], now: datetime) -> list[str]:
    size = f"{row['size_bytes'] / 1e6:,.2f}"
    users = ", ".join(row["runs"]) or "-"
    return [row["digest"][:12], row["kind"], str(row["stage"]), size, age_text(row["created"], now), users]


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
