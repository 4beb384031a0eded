"""Write a report to stdout, or to a file and print its path."""

from __future__ import annotations

from pathlib import Path

import click

from vlm_edge.cli.settings import echo
from vlm_edge.files import write_atomically

output_option = click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file, and print its path."
)


def write_text(text: str, output: Path | None) -> None:
    """Write a report to ``output`` and print the path; to stdout where it is None.

    Raises:
        VlmEdgeError: the file can't be written.
    """
    if output is None:
        click.echo(text, nl=False)
        return
    write_atomically(output, text.encode())
    echo(output)


def kit_lines(folder: Path, reason: str) -> list[str]:
    """The three lines that say what to do with a kit: why it is one, where it goes, what to run there."""
    return [
        f"{folder}: a build kit, no engine: {reason}",
        "Copy this folder to the device, where vlm-edge and the engine are installed (docs/jetson.md), and run there:",
        f"vlm-edge compile {folder.name} --on-device -o {folder.name}-device",
    ]
