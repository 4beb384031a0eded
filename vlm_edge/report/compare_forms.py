"""A comparison of runs as a terminal's tables, as Markdown and as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlm_edge.core.difference import Difference
from vlm_edge.core.measurement import Measurement
from vlm_edge.report.compare import Compared, difference_text, reasons, same_text, shown_metrics, value_tables
from vlm_edge.report.escape import markdown, markup, on_terminal
from vlm_edge.report.html import page
from vlm_edge.report.html_parts import Head, name_cell, note, number, section, table
from vlm_edge.report.markdown import markdown_table
from vlm_edge.report.numbers import format_of, measurement_text, named_format
from vlm_edge.report.svg import tag


def compare_table(comparison: Compared) -> RenderableType:
    """For a terminal: metrics down, runs across, the change below each value."""
    comparison = on_terminal(comparison)
    parts: list[RenderableType] = [
        _rich(["", *comparison.names], [[row.name, *row.values] for row in comparison.heads])
    ]
    rows = [
        [row.metric, *(_rich_cell(found, change) for found, change in zip(row.found, row.changes, strict=True))]
        for row in shown_metrics(comparison)
    ]
    parts += [Text(), _rich(["metric", *comparison.names], rows)]
    for title, values in value_tables(comparison):
        parts += [Text(), _rich([title.lower(), *comparison.names], [[row.name, *row.values] for row in values])]
    lines = [*reasons(comparison), same_text(comparison)]
    return Group(*parts, Text(), *(Text(line, style="dim") for line in lines if line))


def _rich_cell(found: Measurement | None, change: Difference | None) -> str:
    return "\n".join(line for line in (measurement_text(found) if found else "-", _short(change)) if line)


def _short(change: Difference | None) -> str:
    return difference_text(change) if change is None or change.measured is not None else "not compared"


def _rich(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for title in header:
        grid.add_column(Text(title), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid


def compare_markdown(comparison: Compared) -> str:
    """The same as Markdown."""
    names = comparison.names
    lines = [f"# {markdown(' / '.join(names))}", ""]
    lines += markdown_table(["", *names], [[row.name, *row.values] for row in comparison.heads])
    header = ["metric", names[0], *(title for name in names[1:] for title in (name, f"{name} against {names[0]}"))]
    rows = []
    for row in shown_metrics(comparison):
        cells = [row.metric, _text(row.found[0])]
        for found, change in zip(row.found[1:], row.changes[1:], strict=True):
            cells += [_text(found), _short(change)]
        rows.append(cells)
    lines += markdown_table(header, rows)
    lines += [*(f"- {markdown(line)}" for line in reasons(comparison)), ""] if reasons(comparison) else []
    for title, values in value_tables(comparison):
        lines += [f"## {title}: what differs", ""]
        lines += markdown_table(["", *names], [[row.name, *row.values] for row in values])
    return "\n".join([*lines, markdown(same_text(comparison))]).strip() + "\n"


def _text(found: Measurement | None) -> str:
    return measurement_text(found) if found else "-"


def compare_html(comparison: Compared) -> str:
    """The same as one HTML page."""
    names = comparison.names
    head = tag("h1", "comparison") + tag("p", markup(" / ".join(names)), class_="lead")
    across = [Head("", kind="name"), *(Head(name) for name in names)]
    heads = table(across, [[name_cell(row.name), *map(markup, row.values)] for row in comparison.heads], kind="values")
    columns = [Head("metric", kind="name"), Head(names[0], kind="number")]
    columns += [Head(name, f"and against {names[0]}", "number") for name in names[1:]]
    rows = []
    for row in shown_metrics(comparison):
        unit = format_of(next(each for each in row.found if each is not None)).unit
        cells = [
            number(found) + (tag("span", markup(text), class_="change") if (text := _short(change)) else "")
            for found, change in zip(row.found, row.changes, strict=True)
        ]
        rows.append([name_cell(named_format(row.metric).title, unit), *cells])
    body = tag("header", head) + heads + section("metrics", "Metrics", table(columns, rows, kind="values"))
    body += "".join(note(line) for line in reasons(comparison))
    for title, values in value_tables(comparison):
        inner = table(across, [[name_cell(row.name), *map(markup, row.values)] for row in values], kind="values")
        body += section(title.lower(), f"{title}: what differs", inner)
    return page(" / ".join(names), body + (note(same_text(comparison)) if same_text(comparison) else ""))
