"""The global options, and printing: data on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_edge.report.escape import json_text, terminal, terminal_lines

if TYPE_CHECKING:
    from rich.console import Console

    from vlm_edge.core.stage import Progress
    from vlm_edge.core.toolbox import Toolbox


@dataclass(frozen=True)
class Settings:
    """The global options. ``verbosity`` is -1 with ``--quiet``, 0, or the number of ``-v``.

    ``toolbox`` is what a caller of :data:`vlm_edge.cli.main.main` handed in as ``obj``; None: the package's own.
    """

    store: Path
    runs: Path
    verbosity: int = 0
    debug: bool = False
    toolbox: Toolbox | None = None

    @contextmanager
    def working(self) -> Iterator[Progress]:
        """Yield a progress on stderr; meanwhile libraries' output to stdout goes to stderr too."""
        from vlm_edge.cli.progress import PlainProgress, RichProgress
        from vlm_edge.core.stage import SilentProgress

        progress: Progress
        with stdout_is_stderr(), logs_on_stderr(self.verbosity):
            console = stderr_console()
            if self.verbosity < 0:
                yield SilentProgress()
            elif console.is_terminal:
                with RichProgress(console) as progress:
                    yield progress
            else:
                yield PlainProgress(console)

    def remark(self, text: str) -> None:
        """A line for the person at the terminal, on stderr."""
        if self.verbosity >= 0:
            click.echo(terminal(text), err=True)


pass_settings = click.make_pass_decorator(Settings)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def gathered(kind: Callable[..., Any], name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Hand a command the options that ``kind`` takes as one argument ``name``, which ``kind`` makes of them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*arguments: Any, **options: Any) -> Any:
            own = {key: options.pop(key) for key in inspect.signature(kind).parameters}
            return command(*arguments, **options, **{name: kind(**own)})

        return run

    return decorate


def find_recipe(path: Path) -> Path:
    """The recipe itself, or the one of that name that comes with vlm-edge (``recipes/quickstart.yaml``)."""
    from vlm_edge.api import shipped_folder

    shipped = shipped_folder() / path
    return shipped if not path.exists() and shipped.is_file() else path


def print_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    click.echo(json_text(value), nl=False)


def echo(line: object) -> None:
    """Write one line to stdout."""
    click.echo(terminal(line))


def kit_lines(folder: Path, reason: str) -> list[str]:
    """The three lines that say what to do with a kit: why it is one, where it goes, what to run there."""
    return [
        f"{folder}: a build kit, no engine: {reason}",
        "Copy this folder to the device, where vlm-edge and the engine are installed (docs/jetson.md), and run there:",
        f"vlm-edge compile {folder.name} --on-device -o {folder.name}-device",
    ]


def stdout_console() -> Console:
    """The console for results. Piped output is as wide as COLUMNS says, else 120."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def stderr_console() -> Console:
    """The console for progress."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return terminal_lines(super().format(record))


@contextmanager
def logs_on_stderr(verbosity: int) -> Iterator[None]:
    """Logs and Python warnings on stderr while a command works: errors, with ``-v`` warnings, with ``-vv`` all.

    They come from libraries, which know nothing of the user's recipe. Levels are cut off for all loggers at once,
    since torch and NNCF set those of their own when they are imported.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(levelname)s %(name)s: %(message)s"))
    root, before = logging.getLogger(), logging.root.manager.disable
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logging.disable({-1: logging.WARNING, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.NOTSET))
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.disable(before)
        root.setLevel(level)
        root.removeHandler(handler)


@contextmanager
def stdout_is_stderr() -> Iterator[None]:
    """Redirect stdout to stderr, for Python code and native libraries.

    Exporters and calibrators print remarks on stdout, where they would be mixed with the data.
    """
    python_stdout = sys.stdout
    python_stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = python_stdout
        os.dup2(kept, 1)
        os.close(kept)
