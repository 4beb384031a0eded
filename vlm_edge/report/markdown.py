"""A run record as Markdown, for a pull request or a results page: what the HTML page says, without its pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from vlm_edge.core.record import RunRecord, VariantRecord
from vlm_edge.report.escape import markdown, markdown_block
from vlm_edge.report.ladder import Cell, Column, deciding_variant, headline, ladder_of, remarks
from vlm_edge.report.numbers import (
    METRICS,
    VERDICT_WORDS,
    bound_text,
    interval_text,
    measured_text,
    measurement_text,
    named_format,
    reason_text,
    value_text,
)
from vlm_edge.report.views import (
    at_one_load,
    component_times,
    control_of,
    host_lines,
    layer_rows,
    plain,
    quantize_run,
    shared_conditions,
    slice_name,
    task_rows,
    version_lines,
)

Lines = list[str]


def run_markdown(record: RunRecord, regressions: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> str:
    """The verdict and its budgets, the ladder, components, slices, samples, layers, host and provenance."""
    parts = [_verdict(record), _ladder(record), _components(record)]
    for variant in record.variants[1:]:
        parts += [_task(record, variant), _samples(variant, (regressions or {}).get(variant.name, ()))]
    parts += [_layers(record), _host(record), _provenance(record), *(_measurements(each) for each in record.variants)]
    return "\n".join(line for part in parts for line in part) + "\n"


def _verdict(record: RunRecord) -> Lines:
    variant = deciding_variant(record)
    lines = [f"# {markdown(headline(record))}", ""]
    if variant and variant.verdicts:
        rows = [
            [
                judgement.budget,
                bound_text(judgement),
                measured_text(judgement.measured) if judgement.measured else "-",
                VERDICT_WORDS[judgement.verdict],
                reason_text(judgement),
            ]
            for judgement in variant.verdicts
        ]
        lines += markdown_table(["budget", "bound", "measured", "verdict", "reason"], rows)
    lines += [f"- {markdown(line)}" for line in remarks(record)]
    return [*lines, ""] if lines[-1] else lines


def _ladder(record: RunRecord) -> Lines:
    ladder = ladder_of(record)
    rows = [
        [f"{row.name} ({row.note})" if row.note else row.name, *(_cell(cell) for cell in row.cells)]
        for row in ladder.rows
    ]
    table = markdown_table(["variant", *(_header(column) for column in ladder.columns)], rows)
    return [*table, "Intervals are 95% confidence intervals.", ""]


def _components(record: RunRecord) -> Lines:
    times = {name: component_times(metrics) for name, metrics in at_one_load(record).items()}
    names = list(dict.fromkeys(name for parts in times.values() for name in parts))
    if not names:
        return []
    rows = [
        [variant, *(measurement_text(parts[name]) if name in parts else "" for name in names)]
        for variant, parts in times.items()
        if parts
    ]
    return ["## Latency by component (p50)", "", *markdown_table(["variant", *names], rows)]


def _task(record: RunRecord, variant: VariantRecord) -> Lines:
    """The task's metrics and its slices, beside the baseline's."""
    lines: Lines = []
    for title, slices in (("metrics", False), ("slices", True)):
        rows = [
            [
                slice_name(row) if slices else named_format(row.metric).title,
                *(measurement_text(each) if each else "" for each in (row.baseline, row.found, row.drop, row.ratio)),
            ]
            for row in task_rows(record, variant, slices=slices)
        ]
        if rows:
            lines += [f"## {markdown(variant.name)}: {title}", ""]
            lines += markdown_table([title, "baseline", variant.name, "drop", "kept"], rows)
    return lines


def _samples(variant: VariantRecord, samples: Sequence[Mapping[str, Any]]) -> Lines:
    if not samples:
        return []
    rows = [
        [plain(sample.get(key)) for key in ("id", "image", "text", "expected", "baseline", "candidate")]
        + [f"{plain(sample.get('score_before'))} → {plain(sample.get('score_after'))}"]
        for sample in samples
    ]
    header = ["sample", "image", "question", "expected", "baseline", variant.name, "score"]
    return [f"## {markdown(variant.name)}: worst regressed samples", "", *markdown_table(header, rows)]


def _layers(record: RunRecord) -> Lines:
    variants = [variant for variant in (deciding_variant(record), *reversed(record.variants)) if variant is not None]
    found = next(((variant, run) for variant in variants if (run := quantize_run(variant)) is not None), None)
    if found is None:
        return []
    lines = [f"## {markdown(found[0].name)}: quantization error", ""]
    rows = [
        [name, fact.get("scheme", ""), output, plain(value.get("cosine")), plain(value.get("sqnr_db"))]
        for name, fact in found[1].facts["components"].items()
        for output, value in (fact.get("outputs") or {"": {}}).items()
    ]
    lines += markdown_table(["component", "scheme", "output", "cosine", "SQNR, dB"], rows)
    layers = [
        [row.component, row.name, row.operator, *(_db(each) for each in (row.weight_db, row.input_db, row.output_db))]
        for row in sorted(layer_rows(found[1]), key=lambda row: row.worst_db)
    ]
    if layers:
        lines += markdown_table(["component", "layer", "operator", "weight, dB", "input, dB", "output, dB"], layers)
    return lines


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _host(record: RunRecord) -> Lines:
    lines = ["## Measured on", "", *_list(host_lines(record))]
    shared, own = shared_conditions(record)
    if shared or own:
        lines += ["While latency was measured:", "", *_list(shared)]
        for variant, conditions in own.items():
            lines += [f"{markdown(variant)}:", "", *_list(conditions)]
    control = control_of(record)
    if control:
        lines += ["One engine against itself (A/A control):", ""]
        lines += _list((named_format(found.metric).title, measurement_text(found)) for found in control)
    return lines


def _provenance(record: RunRecord) -> Lines:
    facts = [("commit", record.commit or "unknown"), ("seed", str(record.seed)), ("started", record.started)]
    facts += [("wall time", f"{record.wall_s:,.1f} s"), *version_lines(record)]
    rows = [
        [
            each.name,
            f"{run.stage} (implied)" if run.implied else run.stage,
            f"{run.kind} {run.digest[:12]}",
            "yes" if run.cached else "no",
            f"{run.wall_s:,.1f}",
        ]
        for each in record.variants
        for run in each.runs
    ]
    recipe = yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True)
    lines = ["## Provenance", "", *_list(facts), "## Stage runs", ""]
    lines += markdown_table(["variant", "stage", "artifact", "from the store", "seconds"], rows)
    return [*lines, "## Recipe", "", "```yaml", *markdown_block(recipe.rstrip()), "```", ""]


def _measurements(variant: VariantRecord) -> Lines:
    """What no table above has: metrics of parts and of percentiles that are no column of the ladder."""
    others = [found for found in variant.measurements if found.metric not in METRICS]
    if not others:
        return []
    rows = [
        [
            found.metric,
            value_text(found),
            interval_text(found),
            str(found.n),
            named_format(found.metric, found.unit).unit,
        ]
        for found in others
    ]
    header = ["metric", "value", "95% interval", "n", "unit"]
    return [f"## {markdown(variant.name)} in parts", "", *markdown_table(header, rows)]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """A table and the empty line after it."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(markdown(cell) for cell in line) + " |" for line in lines] + [""]


def _list(lines: Iterable[tuple[str, str]]) -> Lines:
    return [*(f"- {markdown(name)}: {markdown(value)}" for name, value in lines), ""]


def _header(column: Column) -> str:
    return ", ".join(part for part in (column.title, column.unit, column.n, _budget(column)) if part)


def _budget(column: Column) -> str:
    return f"budget {column.bound}" if column.bound else ""


def _cell(cell: Cell) -> str:
    return " ".join(part for part in (cell.value, cell.interval, cell.n, cell.judged) if part)
