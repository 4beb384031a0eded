"""Results for a CI system besides the exit code: a JUnit file, GitHub's job summary and annotations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vlm_edge.cli.settings import gathered
from vlm_edge.core.budget import Verdict
from vlm_edge.core.gate import Gate
from vlm_edge.core.record import RunRecord
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import write_atomically
from vlm_edge.report.ci import annotate, crash_junit, crash_summary, job_summary, run_junit, workflow_command
from vlm_edge.report.escape import terminal

EXIT_CODES: dict[Verdict, int] = {
    Verdict.PASS: 0,
    Verdict.FAIL: 3,
    Verdict.UNDECIDED: 4,
    Verdict.NOT_MEASURED: 5,
}

Publish = Callable[[RunRecord, Gate], None]


@dataclass(frozen=True)
class Published:
    """The places where a verdict is written besides stdout."""

    junit: Path | None
    github: bool


def ci_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--junit FILE`` and ``--github/--no-github``, as one argument ``ci`` for :func:`publishing`."""
    command = gathered(Published, "ci")(command)
    command = click.option(
        "--junit",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Also write the verdicts as JUnit XML; the file is written however the command ends.",
    )(command)
    return click.option(
        "--github/--no-github",
        default=lambda: os.environ.get("GITHUB_ACTIONS") == "true",
        help="Also write GitHub's job summary and annotations.  [default: in GitHub Actions]",
    )(command)


@contextmanager
def publishing(name: str, ci: Published) -> Iterator[Publish]:
    """Yield a function that publishes a verdict; after an exception publish that there is none.

    The JUnit file is written at once, with the error that there is no verdict yet, so that neither an older file nor a
    killed process looks like a pass.

    Raises:
        VlmEdgeError: the JUnit file can't be written.
    """
    junit, github = ci.junit, ci.github
    started = datetime.now(UTC).isoformat(timespec="seconds")

    def crashed(kind: str, message: str) -> None:
        if junit is not None:
            write_atomically(junit, crash_junit(name, kind, message, started))

    def publish(record: RunRecord, gate: Gate) -> None:
        if junit is not None:
            write_atomically(junit, run_junit(record, gate))
        if github:
            _on_github(annotate(gate), job_summary(record, gate))

    crashed("Unfinished", "it was started, and did not end")
    try:
        yield publish
    except (Exception, KeyboardInterrupt) as error:
        message = _message(error)
        crashed(type(error).__name__, message)
        if github:
            _on_github([workflow_command("error", f"{name}: NO VERDICT", message)], crash_summary(name, message))
        raise


def _message(error: BaseException) -> str:
    if isinstance(error, VlmEdgeError):
        return str(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _on_github(commands: list[str], summary: str) -> None:
    """Write workflow commands to stderr, which the runner reads too, and the summary to GitHub's file for it."""
    for command in commands:
        click.echo(command, err=True)
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if not file:
        return
    try:
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(summary)
    except OSError as error:  # the verdict stands without its summary
        click.echo(terminal(f"no job summary: {file}: {error.strerror}"), err=True)
