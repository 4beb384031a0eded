"""The ladder as a grid of text: variants down, metrics across."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.gate import gate_of
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord, VariantRecord
from vlm_edge.facts import CompileFacts
from vlm_edge.report.escape import on_terminal
from vlm_edge.report.numbers import (
    METRICS,
    VERDICT_WORDS,
    bound_text,
    format_of,
    gate_headline,
    interval_text,
    is_exact,
    judgement_text,
    named_format,
    value_text,
)
from vlm_edge.report.views import at_one_load

INCOMPLETE = "INCOMPLETE"
"""Stands for the verdict of a run that did not reach its end."""

_WANTED = ("accuracy", "latency_p90_ms", "size_bytes", "latency_p50_ms", "parameters", "peak_rss_mb")
"""Metrics shown first where room is short, after those that a budget bounds."""


@dataclass(frozen=True)
class Column:
    """One metric. ``n`` and ``bound`` are those of every row, None where rows differ or have none."""

    metric: str
    title: str
    unit: str
    n: str | None
    bound: str | None


@dataclass(frozen=True)
class Cell:
    """One metric of one variant; ``verdict`` is None where no budget bounds it.

    ``judged`` is the verdict in words, with the bound if the column doesn't show it: ``MISSED (>= 5 x)``.
    """

    value: str
    interval: str
    n: str
    verdict: Verdict | None
    judged: str


@dataclass(frozen=True)
class Row:
    """One variant, ``note`` being ``left out`` or ``best``."""

    name: str
    note: str
    cells: tuple[Cell, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Ladder:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def ladder_of(record: RunRecord, *, most_columns: int | None = None) -> Ladder:
    """Lay out a run record. Latencies that no budget bounds are given at one load (:func:`.views.at_one_load`).

    Args:
        most_columns: show at most this many metrics: those that a budget bounds first, then accuracy, p90 and size,
            then the others.
    """
    judged = {judgement.metric for variant in record.variants for judgement in variant.verdicts}
    shown = at_one_load(record, but=judged)
    columns = tuple(_column(metric, record, shown) for metric in _metrics(record, most_columns))
    rows = tuple(_row(variant, columns, record, shown[variant.name]) for variant in record.variants)
    return Ladder(columns, rows)


def deciding_variant(record: RunRecord) -> VariantRecord | None:
    """The variant whose verdicts are the run's."""
    return next((variant for variant in record.variants if variant.name == record.decided_by), None)


def unmet(variant: VariantRecord) -> list[str]:
    """Every budget that a variant did not pass, with the value, its interval, n and the bound."""
    return [
        f"{VERDICT_WORDS[judgement.verdict].lower()}: {variant.name}: {judgement_text(judgement)}"
        for judgement in variant.verdicts
        if judgement.verdict is not Verdict.PASS
    ]


def judged_metrics(variant: VariantRecord) -> dict[str, Judgement]:
    """Judgements by metric; of two bounds on one metric the one with the worse verdict."""
    order = list(VERDICT_WORDS)
    return {each.metric: each for each in sorted(variant.verdicts, key=lambda each: -order.index(each.verdict))}


def headline(record: RunRecord) -> str:
    """The verdict in one sentence."""
    if record.incomplete is not None:
        return f"{record.name}: {INCOMPLETE}: it ended after {record.variants[-1].name}: {record.incomplete}"
    return gate_headline(gate_of(record))


def row_text(record: RunRecord) -> str:
    """The last variant in one line for a terminal, printed while a run goes on."""
    record = on_terminal(record)
    ladder = ladder_of(record, most_columns=6)
    row = ladder.rows[-1]
    cells = [
        " ".join(part for part in (column.title, cell.value, column.unit, cell.interval, cell.judged) if part)
        for column, cell in zip(ladder.columns, row.cells, strict=True)
        if cell.value != "-"
    ]
    return f"{row.name}: {'; '.join(cells) or 'not measured'}"


def remarks(record: RunRecord) -> list[str]:
    """Sentences below the table: parts not measured, samples skipped, layers not calibrated, variants left out."""
    lines = []
    for variant in record.variants:
        if variant.unmeasured:
            lines.append(f"{variant.name}: NOT MEASURED: {variant.unmeasured}")
        if variant.emulated:
            lines.append(f"{variant.name}: accuracy {variant.emulated}")
        if variant.skipped:
            names = [": ".join(sample.values()) for sample in variant.skipped]
            more = f" (and {len(names) - 3} more, see run.json)" if len(names) > 3 else ""
            lines.append(f"{variant.name}: {len(names)} samples skipped: {'; '.join(names[:3])}{more}")
        lines += [f"{variant.name}: {note}" for note in variant.notes]
        for run in variant.runs:
            compiled = run.facts_as(CompileFacts)
            for name, fact in compiled.components.items() if compiled else ():
                if fact.tuned and fact.tuned.uncalibrated_layers:
                    layers = f"{fact.tuned.uncalibrated_layers} layers of {name}"
                    lines.append(f"{variant.name}: {layers}: {fact.tuned.uncalibrated}")
        if variant.dropped:
            why = "was" if variant.unmeasured else "missed a budget and was"
            lines.append(f"{variant.name}: {why} left out of later variants (on_miss: drop)")
    return lines


def _metrics(record: RunRecord, most: int | None) -> list[str]:
    judged = {judgement.metric for variant in record.variants for judgement in variant.verdicts}
    measured = {found.metric for variant in record.variants for found in variant.measurements}
    known = [metric for metric in METRICS if metric in measured | judged]
    known += sorted(judged - set(METRICS))
    if most is not None:
        ranks = {metric: rank for rank, metric in enumerate(_WANTED)}
        wanted = sorted(known, key=lambda metric: (metric not in judged, ranks.get(metric, len(ranks))))
        known = [metric for metric in known if metric in wanted[:most]]
    return known


def _column(metric: str, record: RunRecord, shown: Mapping[str, Mapping[str, Measurement]]) -> Column:
    found = [metrics[metric] for metrics in shown.values() if metric in metrics]
    bounds = {bound_text(each) for variant in record.variants for each in variant.verdicts if each.metric == metric}
    counts = {f"n {each.n}" for each in found if not is_exact(each)} or {"exact" for _ in found}
    form = format_of(found[0]) if found else named_format(metric)
    return Column(
        metric,
        title=form.title,
        unit=form.unit,
        n=counts.pop() if len(counts) == 1 else None,
        bound=bounds.pop() if len(bounds) == 1 else None,
    )


def _row(
    variant: VariantRecord, columns: tuple[Column, ...], record: RunRecord, measured: Mapping[str, Measurement]
) -> Row:
    judged = judged_metrics(variant)
    if variant is record.variants[0] and (record.incomplete is not None or variant.name != record.decided_by):
        judged = {}  # nobody expects the baseline to be faster than itself
    cells = tuple(_cell(measured.get(column.metric), judged.get(column.metric), column) for column in columns)
    note = "left out" if variant.dropped else "best" if variant.name == record.best else ""
    return Row(variant.name, note, cells, variant.verdict)


def _cell(found: Measurement | None, judgement: Judgement | None, column: Column) -> Cell:
    verdict = judgement.verdict if judgement else None
    judged = VERDICT_WORDS[judgement.verdict] if judgement else ""
    if judgement is not None and column.bound is None:
        judged += f" ({bound_text(judgement)})"
    if found is None:
        return Cell("-", "", "", verdict, judged)
    count = "" if column.n or is_exact(found) else f"n {found.n}"
    interval = "" if column.n == "exact" else interval_text(found)
    return Cell(value_text(found), interval, count, verdict, judged)
