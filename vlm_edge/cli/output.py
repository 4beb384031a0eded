"""Where a report goes: to stdout, or to a file whose path is then printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlm_edge.files import write_atomically

output_option = click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file, and print the path."
)


def json_text(value: Any) -> str:
    """One JSON document, as :func:`vlm_edge.cli.settings.print_json` prints it."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(text: str, output: Path | None) -> None:
    """Write a report to ``output`` and print the path; to stdout where it is None.

    Raises:
        VlmEdgeError: the file can't be written.
    """
    if output is None:
        click.echo(text, nl=False)
        return
    write_atomically(output, text.encode())
    click.echo(str(output))
