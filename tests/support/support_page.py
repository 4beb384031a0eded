"""docs/support.md's table: cells by model and column."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tiny_families import TINY

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
BEGIN, END = "<!-- measured: make families-table -->\n", "<!-- end -->"
WRITE = "VLM_EDGE_WRITE_FAMILIES"
"""Environment variable: write the cells into the page (`make families-table`) rather than compare them with it."""


def read_table() -> tuple[list[str], dict[str, dict[str, str]]]:
    """The columns, and each model's cells."""
    lines = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].splitlines()
    columns, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return columns, {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def hold(model: str, found: Mapping[str, str]) -> None:
    """Compare what was found for a model with its cells, or write it there."""
    columns, rows = read_table()
    if WRITE not in os.environ:
        assert {column: rows[model][column] for column in found} == found, f"{PAGE.name}: run `make families-table`"
        return
    rows[model] = dict.fromkeys(columns, "") | rows.get(model, {}) | {"model": model} | found
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    lines = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns))]
    lines += [f"| {' | '.join(rows[name].values())} |" for name in TINY if name in rows]
    PAGE.write_text(f"{head}{BEGIN}" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}", encoding="utf-8")
