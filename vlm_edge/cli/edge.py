"""The edge: what a command raises becomes words on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from vlm_edge.errors import RecipeError, UsageError, VlmEdgeError

ERROR = 1
USAGE = 2
INTERRUPTED = 130
PIPE_CLOSED = 141


@contextmanager
def edge(ctx: click.Context) -> Iterator[None]:
    """Turn a command's exceptions into a message and an exit code.

    A :class:`VlmEdgeError` is shown with its hint and no traceback; anything unforeseen in one line, its traceback
    saved to a file. With ``--debug`` both are raised as they are.
    """
    try:
        yield
        sys.stdout.flush()
    except VlmEdgeError as error:
        if _debug(ctx):
            raise
        _show(error)
        ctx.exit(USAGE if isinstance(error, RecipeError | UsageError) else ERROR)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted; what is finished is in the store: run the same command again to go on", err=True)
        ctx.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  (so that the interpreter's own flush is quiet)
        ctx.exit(PIPE_CLOSED)
    except (click.ClickException, click.exceptions.Exit):
        raise
    except Exception as error:
        if _debug(ctx):
            raise
        if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(error.name or "")):
            _show(VlmEdgeError(f"this needs {error.name}, which is not installed", f"pip install 'vlm-edge[{extra}]'"))
            ctx.exit(ERROR)
        click.secho(f"error: {type(error).__name__}: {_first_line(error)}", fg="red", err=True)
        click.echo(f"hint: this is a fault in vlm-edge; the traceback is in {_save_traceback()}", err=True)
        ctx.exit(ERROR)


_EXTRAS = {
    "compress": ("torch", "transformers", "huggingface_hub", "safetensors", "onnx", "onnxscript", "nncf", "optimum"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "demo": ("easy_vqa",),
}
"""Modules that an installation for a device alone does not have, by the extra that brings them."""


def _extra_of(module: str) -> str | None:
    return next((extra for extra, modules in _EXTRAS.items() if module.partition(".")[0] in modules), None)


def _debug(ctx: click.Context) -> bool:
    return bool(getattr(ctx.obj, "debug", False))


def _show(error: VlmEdgeError) -> None:
    """One ``error:`` line per fault, then the hint."""
    for line in error.faults if isinstance(error, RecipeError) else [error.message]:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {line}", err=True)
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {error.hint}", err=True)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"


def _save_traceback() -> str:
    """Write the current traceback, with what was asked, to a temporary file and give its name."""
    import platform
    import tempfile
    import traceback

    from vlm_edge import __version__

    with tempfile.NamedTemporaryFile(
        "w", prefix="vlm-edge-", suffix=".traceback.txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(f"vlm-edge {__version__}, python {platform.python_version()}, {platform.platform()}\n")
        file.write(f"arguments: {sys.argv[1:]}\n\n{traceback.format_exc()}")
    return file.name
