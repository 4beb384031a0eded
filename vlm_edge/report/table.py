"""A run record as rich tables, for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement as Width
from rich.table import Table
from rich.text import Text

from vlm_edge.core.budget import Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord
from vlm_edge.report.escape import on_terminal
from vlm_edge.report.ladder import Cell, Column, Ladder, Row, deciding_variant, headline, ladder_of, remarks, unmet
from vlm_edge.report.numbers import format_of, interval_text, is_exact, value_text

_FEWEST_COLUMNS = 3
_STYLES = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.UNDECIDED: "yellow",
    Verdict.NOT_MEASURED: "bold yellow",
}


def run_summary(record: RunRecord, console: Console) -> RenderableType:
    """The end of ``vlm-edge run``: the ladder, remarks, the unmet budgets, the verdict."""
    record = on_terminal(record)
    variant = deciding_variant(record)
    table, hidden = _fitted(record, console)
    lines: list[RenderableType] = [table, Text()]
    if hidden:
        lines.append(Text(f"not shown at this width: {', '.join(hidden)}", style="dim"))
    lines += [Text(line, style="yellow") for line in remarks(record)]
    missed = unmet(variant) if variant else []
    lines += [Text(line, style="red", no_wrap=True, overflow="ignore") for line in missed]  # one line each, for grep
    lines.append(Text(headline(record), style=_STYLES[record.verdict]))
    return Group(*lines)


def _fitted(record: RunRecord, console: Console) -> tuple[Table, list[str]]:
    """The ladder with as many metrics as the console has room for, and the titles of the others."""
    full = ladder_of(record)
    ladder, table = full, ladder_table(full)
    unlimited = console.options.update(max_width=10_000)
    for count in range(len(full.columns) - 1, _FEWEST_COLUMNS - 1, -1):
        if Width.get(console, unlimited, table).maximum <= console.width:
            break
        ladder = ladder_of(record, most_columns=count)
        table = ladder_table(ladder)
    return table, [column.title for column in full.columns if column not in ladder.columns]


def text_table(
    titles: Sequence[str | Text], rows: Iterable[Sequence[str | Text]], right: Collection[int] = ()
) -> Table:
    """Columns under titles; those at the places in ``right`` are aligned right. Markup in a cell is plain text."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, title in enumerate(titles):
        head = Text(title) if isinstance(title, str) else title
        table.add_column(head, justify="right" if place in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def ladder_table(ladder: Ladder) -> Table:
    """Variants down, metrics across: value, 95% interval, n and verdict in each cell."""
    rows: list[list[Text]] = []
    for row in ladder.rows:
        rows += [[]] if rows else []
        rows.append([_name(row), *map(_cell, row.cells)])
    return text_table(["variant", *map(_header, ladder.columns)], rows, range(1, len(ladder.columns) + 1))


def stages_table(record: RunRecord) -> Table:
    """Every stage run: its variant, its artifact, whether it came from the store, its duration in seconds."""
    rows = [
        (
            variant.name,
            f"{run.stage} (implied)" if run.implied else run.stage,
            f"{run.kind} {run.digest[:12]}",
            "yes" if run.cached else "no",
            f"{run.wall_s:,.1f}",
        )
        for variant in on_terminal(record).variants
        for run in variant.runs
    ]
    return text_table(("variant", "stage", "artifact", "from the store", "seconds"), rows, {4})


def measurements_table(measurements: Sequence[Measurement]) -> Table:
    """One measurement a line, for a single engine."""
    rows = [
        (
            found.metric,
            value_text(found),
            interval_text(found),
            "" if is_exact(found) else str(found.n),
            format_of(found).unit,
        )
        for found in on_terminal(measurements)
    ]
    return text_table(("metric", "value", "95% interval", "n", "unit"), rows, {1, 2, 3})


def _header(column: Column) -> Text:
    below = ", ".join(part for part in (column.unit, column.n) if part)
    text = Text(f"{column.title}\n{below}")
    text.append(f"\n{column.bound}" if column.bound else "\n", style="dim")
    return text


def _name(row: Row) -> Text:
    return Text(f"{row.name}\n({row.note})" if row.note else row.name)


def _cell(cell: Cell) -> Text:
    text = Text(cell.value)
    for part in (cell.interval, cell.n):
        if part:
            text.append(f"\n{part}", style="dim")
    if cell.verdict is not None:
        text.append(f"\n{cell.judged}", style=_STYLES[cell.verdict])
    return text
