"""Several runs side by side: metrics and their changes, and differing settings, versions and hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from vlm_edge.core.measurement import Difference, Measurement
from vlm_edge.core.record import RunRecord, VariantRecord
from vlm_edge.report.escape import on_terminal
from vlm_edge.report.ladder import INCOMPLETE
from vlm_edge.report.numbers import METRICS, VERDICT_WORDS, measured_text, measurement_text, split_metric
from vlm_edge.report.table import text_table
from vlm_edge.report.views import Lines, flat, host_lines, plain, version_lines


@dataclass(frozen=True)
class MetricRow:
    """One metric of every run, None where it has none; ``changes`` are against the first run, whose own is None."""

    metric: str
    found: tuple[Measurement | None, ...]
    changes: tuple[Difference | None, ...]


@dataclass(frozen=True)
class ValueRow:
    """A setting, a version or a fact of the host that differs between runs."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """``names``: unique, one a run; ``heads``: each run's variant, verdict, commit and start."""

    names: tuple[str, ...]
    heads: tuple[ValueRow, ...]
    metrics: tuple[MetricRow, ...]
    recipe: tuple[ValueRow, ...]
    versions: tuple[ValueRow, ...]
    host: tuple[ValueRow, ...]


def compared(
    sides: Sequence[tuple[str, RunRecord, VariantRecord]], changes: Sequence[Mapping[str, Difference]]
) -> Compared:
    """Put runs side by side.

    Args:
        sides: for each run its name on the command line, its record and the variant to compare.
        changes: for each run after the first, its differences from the first by metric.
    """
    records = [record for _, record, _ in sides]
    measured = [{found.metric: found for found in variant.measurements} for _, _, variant in sides]
    rows = [
        MetricRow(
            metric,
            tuple(each.get(metric) for each in measured),
            (None, *(each.get(metric) for each in changes)),
        )
        for metric in sorted({metric for each in measured for metric in each}, key=_place)
    ]
    return Compared(
        names=_names(sides),
        heads=_heads(sides),
        metrics=tuple(rows),
        recipe=_unlike([flat(_by_name(record.recipe)) for record in records]),
        versions=_unlike([version_lines(record) for record in records]),
        host=_unlike([host_lines(record) for record in records]),
    )


def _names(sides: Sequence[tuple[str, RunRecord, VariantRecord]]) -> tuple[str, ...]:
    """The runs' names; their names on the command line where two are the same; with a number where those are."""
    for names in ([record.name for _, record, _ in sides], [called for called, _, _ in sides]):
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"{called} ({index + 1})" for index, (called, _, _) in enumerate(sides))


def _heads(sides: Sequence[tuple[str, RunRecord, VariantRecord]]) -> tuple[ValueRow, ...]:
    rows = {
        "variant": [variant.name for _, _, variant in sides],
        "verdict": [_verdict(record, variant) for _, record, variant in sides],
        "did not end": [record.incomplete or "" for _, record, _ in sides],
        "not measured": [variant.unmeasured or "" for _, _, variant in sides],
        "commit": [record.commit or "unknown" for _, record, _ in sides],
        "started": [record.started for _, record, _ in sides],
        "engine": [variant.artifacts.get("engine", "")[:12] for _, _, variant in sides],
    }
    return tuple(ValueRow(name, tuple(values)) for name, values in rows.items() if any(values))


def _verdict(record: RunRecord, variant: VariantRecord) -> str:
    if record.incomplete is not None:
        return INCOMPLETE
    return VERDICT_WORDS[variant.verdict] if variant.verdicts else "not judged"


def _place(metric: str) -> tuple[int, str, int, str]:
    """Metrics in the order of the ladder's columns, each with its slices after it; then the others by name."""
    base, part = split_metric(metric)
    known = list(METRICS)
    return (known.index(base) if base in known else len(known), base, part is not None, part or "")


def _by_name(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with its stages by name, so that one more stage doesn't move the others."""
    stages = [stage for stage in recipe.get("stages", []) if isinstance(stage, dict)]
    named = {str(stage.get("name")): {k: v for k, v in stage.items() if k != "name"} for stage in stages}
    return {**recipe, "stages": named, "order of stages": list(named)}


def _unlike(runs: Sequence[Lines]) -> tuple[ValueRow, ...]:
    """The lines that differ between runs, ``-`` where a run has no such line."""
    tables = [dict(lines) for lines in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [ValueRow(name, tuple(table.get(name, "-") for table in tables)) for name in names]
    return tuple(row for row in rows if len(set(row.values)) > 1)


def shown_metrics(comparison: Compared) -> list[MetricRow]:
    """Rows for tables: all but drops and ratios of slices against a run's own baseline, which only JSON has."""
    rows = []
    for row in comparison.metrics:
        base, part = split_metric(row.metric)
        if part is None or not base.endswith(("_drop_pt", "_ratio")):
            rows.append(row)
    return rows


def difference_text(difference: Difference | None) -> str:
    """``drop 0.44 pt [0.24, 0.64], n 9673 (paired)``; ``1.05 x [1.01, 1.09], n 400 (unpaired)``; or why not."""
    if difference is None:
        return ""
    if difference.measured is None:
        return f"not compared: {difference.reason}"
    found = difference.measured
    if difference.how == "exact":
        return f"{found.value:.4g} x (exact)"
    if found.unit == "pt":
        return f"drop {measurement_text(found)} ({difference.how})"
    rounded = {end: float(f"{getattr(found, end):.4g}") for end in ("low", "value", "high")}
    return f"{measured_text(found.model_copy(update=rounded))} ({difference.how})"


def change_text(change: Difference | None) -> str:
    """The difference in a cell, ``not compared`` where there is none: its reason is among :func:`reasons`."""
    return difference_text(change) if change is None or change.measured is not None else "not compared"


def reasons(comparison: Compared) -> list[str]:
    """Reasons that metrics were not compared, or not sample by sample; each once, with its metrics."""
    lines: dict[str, list[str]] = {}
    for row in comparison.metrics:
        for name, change in zip(comparison.names, row.changes, strict=True):
            if change is not None and change.reason:
                how = "not compared" if change.measured is None else f"{change.how}, not paired"
                lines.setdefault(f"{name}: {how}: {change.reason}", []).append(row.metric)
    return [f"{text} ({', '.join(metrics)})" for text, metrics in lines.items()]


def compared_json(comparison: Compared) -> dict[str, Any]:
    """The comparison as JSON values."""
    names = comparison.names
    return {
        "runs": [
            {"run": name, **{row.name: row.values[index] for row in comparison.heads}}
            for index, name in enumerate(names)
        ],
        "metrics": [
            {
                "metric": row.metric,
                "values": [found.model_dump(mode="json") if found else None for found in row.found],
                "changes": [change.model_dump(mode="json") if change else None for change in row.changes],
            }
            for row in comparison.metrics
        ],
        **{
            part: {row.name: list(row.values) for row in getattr(comparison, part)}
            for part in ("recipe", "versions", "host")
        },
    }


def value_tables(comparison: Compared) -> list[tuple[str, tuple[ValueRow, ...]]]:
    """Titles and rows of differing settings, versions and host facts."""
    tables = [("Recipe", comparison.recipe), ("Versions", comparison.versions), ("Host", comparison.host)]
    return [(title, rows) for title, rows in tables if rows]


def same_text(comparison: Compared) -> str:
    """``recipe, host are the same``: those that no run differs in; empty if there are none."""
    same = [part for part in ("recipe", "versions", "host") if not getattr(comparison, part)]
    return plain(same) + (" are" if len(same) > 1 else " is") + " the same" if same else ""


def compare_table(comparison: Compared) -> RenderableType:
    """A comparison for a terminal: metrics down, runs across, the change below each value."""
    comparison = on_terminal(comparison)
    parts: list[RenderableType] = [
        text_table(["", *comparison.names], [[row.name, *row.values] for row in comparison.heads])
    ]
    rows = []
    for row in shown_metrics(comparison):
        cells = zip([measurement_text(found) if found else "-" for found in row.found], row.changes, strict=True)
        rows.append([row.metric, *(f"{cell}\n{change_text(change)}".rstrip("\n") for cell, change in cells)])
    parts += [Text(), text_table(["metric", *comparison.names], rows)]
    for title, values in value_tables(comparison):
        parts += [Text(), text_table([title.lower(), *comparison.names], [[row.name, *row.values] for row in values])]
    lines = [*reasons(comparison), same_text(comparison)]
    return Group(*parts, Text(), *(Text(line, style="dim") for line in lines if line))
