"""The error boundary: an exception of a command becomes a message on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from vlm_edge.backends import BACKENDS
from vlm_edge.errors import RecipeError, UsageError, VlmEdgeError
from vlm_edge.files import environment_fault, write_atomically
from vlm_edge.report.escape import terminal, terminal_lines

ERROR = 1
USAGE = 2
INTERRUPTED = 130
PIPE_CLOSED = 141


@contextmanager
def error_boundary(ctx: click.Context) -> Iterator[None]:
    """Turn a command's exceptions into a message and an exit code.

    A :class:`VlmEdgeError` is shown with its hint and no traceback, and so is a fault of the disk, a folder or the
    installation. Anything unforeseen is a fault in vlm-edge: one line, and a log for a report. With ``--debug`` all are
    raised as they are.
    """
    try:
        yield
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted; finished stages are in the store: run the same command again to go on", err=True)
        ctx.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  (so that the interpreter's own flush is quiet)
        ctx.exit(PIPE_CLOSED)
    except (click.ClickException, click.exceptions.Exit):
        raise
    except Exception as error:
        if getattr(ctx.obj, "debug", False):
            raise
        known = error if isinstance(error, VlmEdgeError) else _explained(error)
        if known is not None:
            for line in known.faults if isinstance(known, RecipeError) else [known.message]:
                click.echo(f"{click.style('error:', fg='red', bold=True)} {terminal_lines(line)}", err=True)
            if known.hint:
                click.echo(f"{click.style('hint:', fg='cyan')} {terminal_lines(known.hint)}", err=True)
            ctx.exit(USAGE if isinstance(known, RecipeError | UsageError) else ERROR)
        click.secho(f"error: {type(error).__name__}: {terminal(_first_line(error))}", fg="red", err=True)
        click.echo(f"hint: this is a fault in vlm-edge; {_save_log()}", err=True)
        ctx.exit(ERROR)


_EXTRAS = {
    "compress": ("torch", "transformers", "huggingface_hub", "safetensors", "onnx", "onnxscript", "nncf", "optimum"),
    **{spec.extra: tuple(name.replace("-", "_") for name in spec.packages) for spec in BACKENDS.values() if spec.extra},
    "demo": ("easy_vqa",),
}
"""Modules that the base installation lacks, by the extra that installs them."""

_NATIVE = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)}
"""System errors that C++ and Rust libraries give only as text, in exceptions of their own."""


def _explained(error: Exception) -> VlmEdgeError | None:
    """A fault of the environment as an error for the user; None for a fault of ours."""
    if isinstance(error, ModuleNotFoundError):
        module = error.name or ""
        extra = next((extra for extra, names in _EXTRAS.items() if module.partition(".")[0] in names), None)
        hint = f"pip install 'vlm-edge[{extra}]'"
        return VlmEdgeError(f"this needs {module}, which is not installed", hint) if extra else None
    if isinstance(error, MemoryError):
        return VlmEdgeError("out of memory", "close other programs, or take a machine with more memory")
    found = error if isinstance(error, OSError) and error.errno is not None else None
    if found is None:
        number = next((number for number, words in _NATIVE.items() if words in str(error)), None)
        found = OSError(number, _NATIVE[number]) if number is not None else None
    if found is None:
        return None
    return environment_fault(found, None if found is error else _first_line(error))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"


def _save_log() -> str:
    """Write traceback, versions and command line to a log below the user's state folder; a hint with its path."""
    import platform
    import tempfile
    import traceback
    from importlib import metadata

    from vlm_edge import __version__

    installed = {each.name.lower(): each.version for each in metadata.distributions() if each.name}
    engines = (name for spec in BACKENDS.values() for name in spec.packages)
    wanted = ("numpy", *engines, "onnx", "onnx-ir", "torch", "transformers", "tokenizers", "pydantic")
    versions = [f"{name} {installed[name]}" for name in wanted if name in installed]
    text = (
        f"vlm-edge {__version__}, python {platform.python_version()}, {platform.platform()}\n"
        f"{', '.join(versions)}\narguments: {sys.argv[1:]}\n\n{traceback.format_exc()}"
    )
    content = without_secrets(text).encode(errors="backslashreplace")
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.log"
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111  (never raises)
    states = [Path(base) / "vlm-edge" / "faults"] if Path(base).is_absolute() else []
    for folder in (*states, Path(tempfile.gettempdir())):
        try:
            write_atomically(folder / name, content)
        except VlmEdgeError:
            continue
        return f"attach {folder / name} to a report of it (traceback, versions and command line)"
    return "no log of it could be written: run the command with --debug, and attach what it prints to a report of it"


_SECRET_NAME = re.compile(r"token|secret|passw|credential|api_?key|auth", re.IGNORECASE)
_SECRETS = re.compile(
    r"""\b(?:hf|api_org|gh[pousr]|github_pat|glpat)[_-]\w{8,}   # tokens of hubs
    | \b(?:AKIA|ASIA)[A-Z0-9]{12,}                              # keys of clouds
    | (?<=://)[^/\s@'"]+(?=@)                                   # https://USER:PASSWORD@host
    | (?<=[Bb]earer\s)\S+
    | (?<=token=)[^\s&'"]+ | (?<=password=)[^\s&'"]+ | (?<=secret=)[^\s&'"]+""",
    re.VERBOSE,
)


def without_secrets(text: str) -> str:
    """Replace passwords and tokens, and values of environment variables with such names, by ``***``."""
    values = [value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 8]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return _SECRETS.sub("***", text)
