"""A run record as Markdown, for a pull request or a results page."""

from __future__ import annotations

from vlm_edge.core.record import RunRecord
from vlm_edge.report.ladder import Cell, Column, deciding_variant, headline, ladder_of, remarks, unmet
from vlm_edge.report.numbers import METRICS, measurement_text


def run_markdown(record: RunRecord) -> str:
    """The verdict, the unmet budgets, the ladder with every metric, the stage runs, and where it was measured."""
    ladder = ladder_of(record)
    variant = deciding_variant(record)
    lines = [f"# {_plain(headline(record))}", ""]
    lines += [f"- {_plain(line)}" for line in [*(unmet(variant) if variant else []), *remarks(record)]]
    if lines[-1]:
        lines.append("")
    lines += _table(
        ["variant", *(_header(column) for column in ladder.columns)],
        [
            [f"{row.name} ({row.note})" if row.note else row.name, *(_cell(cell) for cell in row.cells)]
            for row in ladder.rows
        ],
    )
    lines += ["", "Intervals are 95% confidence intervals.", "", "## Stage runs", ""]
    lines += _table(
        ["variant", "stage", "artifact", "from the store", "seconds"],
        [
            [each.name, run.stage, f"{run.kind} {run.digest[:12]}", "yes" if run.cached else "no", f"{run.wall_s:,.1f}"]
            for each in record.variants
            for run in each.runs
        ],
    )
    sliced = [found for found in (variant.measurements if variant else []) if found.metric not in METRICS]
    if variant and sliced:
        lines += ["", f"## {variant.name} in parts", ""]
        lines += _table(["metric", "value"], [[found.metric, measurement_text(found)] for found in sliced])
    lines += ["", "## Measured on", ""]
    facts = {**record.host, **record.versions, "seed": record.seed, "started": record.started}
    lines += [f"- {_plain(str(name))}: {_plain(str(value))}" for name, value in facts.items()]
    return "\n".join(lines) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines]


def _plain(text: str) -> str:
    """Text that neither ends a table's cell nor starts HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _header(column: Column) -> str:
    return ", ".join(part for part in (column.title, column.unit, column.n, _budget(column)) if part)


def _budget(column: Column) -> str:
    return f"budget {column.bound}" if column.bound else ""


def _cell(cell: Cell) -> str:
    return " ".join(part for part in (cell.value, cell.interval, cell.n, cell.judged) if part)
