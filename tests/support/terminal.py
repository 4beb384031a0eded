"""The text of a rich renderable on a terminal or in a log."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console, RenderableType


def printed(draw: Callable[[Console], RenderableType], width: int, encoding: str = "utf-8") -> str:
    """The text that ``draw`` makes for a console of that width, which can't show more than ``encoding`` has."""
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=width, highlight=False)
    console.print(draw(console), crop=False)
    return raw.getvalue().decode(encoding)
