"""A run, or a comparison of runs, as one HTML file that opens offline: no script, font or picture from elsewhere.

Each section of a run's page is a template, ``templates/run/ANCHOR.html``, filled from one function of this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from vlm_edge.core.budget import Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord, VariantRecord
from vlm_edge.report import render, views
from vlm_edge.report.compare import Compared, reasons, same_text, shown_metrics, value_tables
from vlm_edge.report.ladder import INCOMPLETE, deciding_variant, headline, judged_metrics, ladder_of, remarks
from vlm_edge.report.numbers import VERDICT_WORDS, format_of, limit_of, measured_text, named_format
from vlm_edge.report.pareto import pareto_picture, pareto_points
from vlm_edge.report.render import Head
from vlm_edge.report.scale import Scale, scale_over

MOST_COLUMNS = 9
"""Metrics in the ladder; those without room are among all measurements at the end."""
COLOURS = 8
"""Colours of components; a ninth takes the first again."""
WORST_LAYERS = 12
MOST_SENSITIVE = 12

Regressions = Mapping[str, Sequence[Mapping[str, Any]]]
View = dict[str, Any] | None
"""Values for a section's template; None leaves the section out."""


def run_html(record: RunRecord, regressions: Regressions | None = None) -> str:
    """The page of a run.

    Args:
        record: the run.
        regressions: the worst regressed samples by variant, as :func:`vlm_edge.report.views.read_regressions` reads.
    """
    sections = [
        ("ladder", "The ladder", _ladder(record)),
        ("pareto", "Accuracy, latency, size", _pareto(record)),
        ("components", "Latency by component", _components(record)),
        ("metrics", "Task metrics", _tasks(record, slices=False)),
        ("slices", "Slices", _tasks(record, slices=True)),
        ("regressions", "Worst regressed samples", _regressions(record, regressions or {})),
        ("layers", "Quantization error", _layers(record)),
        ("host", "Host", _host(record)),
        ("provenance", "Provenance", _provenance(record)),
        ("measurements", "Every measurement", {} if any(each.measurements for each in record.variants) else None),
    ]
    shown = [section for section in sections if section[2] is not None]
    return render.html("run.html", record=record, title=headline(record), top=_top(record), sections=shown)


def compare_html(comparison: Compared) -> str:
    """The page of a comparison."""
    names = comparison.names
    metrics = [
        (row, format_of(next(found for found in row.found if found is not None)).unit)
        for row in shown_metrics(comparison)
    ]
    later = [Head(name, "number", f"and against {names[0]}") for name in names[1:]]
    return render.html(
        "compare.html",
        comparison=comparison,
        title=" / ".join(names),
        heads=[Head("", "name"), *map(Head, names)],
        metric_heads=[Head("metric", "name"), Head(names[0], "number"), *later],
        metrics=metrics,
        reasons=reasons(comparison),
        tables=value_tables(comparison),
        same=same_text(comparison),
    )


def _top(record: RunRecord) -> dict[str, Any]:
    """The verdict as a word and a sentence, facts of the run, every budget (the worst first), and remarks."""
    variant = deciding_variant(record)
    judgements = variant.verdicts if variant else []
    kind, word = record.verdict.value, VERDICT_WORDS[record.verdict]
    if record.incomplete is not None:
        word = INCOMPLETE
    elif not judgements:
        kind, word = "none", "NOT JUDGED"
    elif record.verdict is Verdict.PASS:
        word = "MET"
    about = {
        "model": record.recipe.get("model"),
        "task": _of(record.recipe, "task", "kind"),
        "data": _of(record.recipe, "task", "data"),
        "target": _of(record.recipe, "target", "name"),
        "host": record.host.get("cpu"),
        "started": record.started,
        "decided by": record.decided_by,
        "best": record.best or "none met every budget",
        "commit": record.commit or "unknown",
    }
    order = list(VERDICT_WORDS)
    return {
        "word": word,
        "kind": kind,
        "sentence": headline(record).partition(": ")[2].removeprefix(f"{word}: "),
        "about": [(name, str(value)) for name, value in about.items() if value is not None],
        "judgements": sorted(judgements, key=lambda each: order.index(each.verdict)),
        "remarks": remarks(record),
    }


def _of(recipe: Mapping[str, Any], group: str, key: str) -> Any:
    inner = recipe.get(group)
    return inner.get(key) if isinstance(inner, dict) else None


def _ladder(record: RunRecord) -> View:
    ladder = ladder_of(record, most_columns=MOST_COLUMNS)
    heads = [Head("variant", "name")]
    for column in ladder.columns:
        below = ", ".join(part for part in (column.unit, column.n) if part)
        heads.append(Head(column.title, "number", f"{below}\n{column.bound or ''}"))
    return {"heads": heads, "rows": ladder.rows}


def _pareto(record: RunRecord) -> View:
    points = pareto_points(record)
    if len(points) < 2:
        return None
    shown = {point.name for point in points}
    absent = [variant.name for variant in record.variants if variant.name not in shown]
    return {"wide": pareto_picture(points, 1040, 440), "narrow": pareto_picture(points, 360, 400), "absent": absent}


def _components(record: RunRecord) -> View:
    """A bar for each variant with the medians of its components, and a mark at the median of a whole query."""
    shown = views.at_one_load(record)
    times = {name: parts for name, metrics in shown.items() if (parts := views.component_times(metrics))}
    names = list(dict.fromkeys(name for parts in times.values() for name in parts))
    if not names:
        return None
    whole = {name: metrics.get("latency_p50_ms") for name, metrics in shown.items()}
    ends = [sum(found.value for found in parts.values()) for parts in times.values()]
    ends += [found.value for found in whole.values() if found is not None]
    scale = Scale(0.0, 1.02 * max(ends), 0.0, 100.0)
    colours = {name: index % COLOURS for index, name in enumerate(names)}
    heads = [Head("variant", "name"), *(Head(name, "number", "p50, ms") for name in [*names, "end to end"])]
    bars = []
    for variant, parts in times.items():
        found = whole[variant]
        bar = _bar(parts, scale, colours) | {"found": [*(parts.get(name) for name in names), found]}
        bar["label"] = f"{variant}: {bar['label']}"
        bars.append(bar | {"variant": variant, "whole": scale.place(found.value) if found else None})
    legend = [(f"c{colour}", name) for name, colour in colours.items()]
    return {"legend": legend, "bars": bars, "scale": scale, "heads": heads}


def _bar(parts: Mapping[str, Measurement], scale: Scale, colours: Mapping[str, int]) -> dict[str, Any]:
    """Pieces one after another: starts and widths in percent of the row."""
    ends = [scale.place(end) for end in accumulate((found.value for found in parts.values()), initial=0.0)]
    titles = {name: measured_text(found) for name, found in parts.items()}
    pieces = [
        {"start": start, "width": end - start, "colour": colours[name], "title": f"{name}: {text}"}
        for (name, text), start, end in zip(titles.items(), ends, ends[1:], strict=False)
    ]
    return {"pieces": pieces, "label": ", ".join(f"{name} {text}" for name, text in titles.items())}


def _tasks(record: RunRecord, *, slices: bool) -> View:
    """The task's metrics, or its slices, by variant; ``main`` is the deciding variant, or the last."""
    tasks = {
        variant.name: _task(rows, variant, slices)
        for variant in record.variants
        if (variant is not record.variants[0] or variant.name == record.decided_by)
        and (rows := views.task_rows(record, variant, slices=slices))
    }
    if not tasks:
        return None
    main = record.decided_by if record.decided_by in tasks else next(reversed(tasks))
    return {"first": "slice" if slices else "metric", "tasks": tasks, "main": main}


def _task(rows: Sequence[views.TaskRow], variant: VariantRecord, slices: bool) -> dict[str, Any]:
    judged = judged_metrics(variant)
    drops = [row.drop for row in rows if row.drop is not None]
    limits = [limit_of(judged[drop.metric]) for drop in drops if drop.metric in judged]
    ends = [0.0, *limits, *(end for drop in drops for end in (drop.low, drop.high))]
    titles = [views.slice_name(row) if slices else named_format(row.metric).title for row in rows]
    scale = scale_over(ends, 0, 100) if drops else None
    return {"rows": list(zip(titles, rows, strict=True)), "judged": judged, "scale": scale}


def _regressions(record: RunRecord, regressions: Regressions) -> View:
    known = {variant.name: regressions[variant.name] for variant in record.variants if regressions.get(variant.name)}
    if not known:
        return None
    return {"samples": known, "main": record.decided_by if record.decided_by in known else next(reversed(known))}


def _layers(record: RunRecord) -> View:
    """Quantization error by component and layer, and the ranking of layers that are quantized alone."""
    found = views.last_quantized(record)
    if found is None:
        return None
    variant, facts = found
    layers, ranked, drawn = views.layer_rows(facts), views.sensitivity_rows(facts), facts.metric_samples
    noise = [
        db
        for _, each in layers
        for db in (each.weight_sqnr_db, each.input_sqnr_db, each.output_sqnr_db)
        if db is not None
    ]
    by_task = any(row.layer.drop_pt is not None for row in ranked)
    ranked.sort(key=lambda row: (-row.layer.drop_pt.value if row.layer.drop_pt else 0.0, row.layer.sqnr_db))
    return {
        "variant": variant.name,
        "components": views.component_rows(facts),
        "layers": layers,
        "worst": sorted(layers, key=lambda row: row.worst_db)[:WORST_LAYERS],
        "scale": scale_over(noise, 0, 100),
        "by_task": by_task,
        "ranked": _ranking(ranked, by_task),
        "most": _ranking(ranked[:MOST_SENSITIVE], by_task),
        "fallback": facts.task_drop,
        "measured_on": f"{drawn.images:,} images of the {drawn.split} split" if drawn else "",
    }


def _ranking(rows: Sequence[views.SensitivityRow], by_task: bool) -> dict[str, Any]:
    drops = [row.layer.drop_pt for row in rows if row.layer.drop_pt is not None]
    ends = [0.0, *(end for drop in drops for end in (drop.low, drop.high))]
    ends = ends if by_task else [row.layer.sqnr_db for row in rows]
    return {"rows": rows, "scale": scale_over(ends, 0, 100)}


def _host(record: RunRecord) -> View:
    shared, own = views.shared_conditions(record)
    conditions = list(dict.fromkeys(name for lines in own.values() for name, _ in lines))
    control = views.control_of(record)
    apart = [100 * max(found.high - 1, 1 / found.low - 1, 0.0) for found in control]
    return {
        "host": views.host_lines(record),
        "shared": shared,
        "heads": [Head("condition", "name"), *map(Head, own)],
        "rows": [(name, [dict(lines).get(name, "") for lines in own.values()]) for name in conditions],
        "control": [(found, f"{percent:.2g}%") for found, percent in zip(control, apart, strict=True)],
        "scale": scale_over([1.0, *(end for found in control for end in (found.low, found.high))], 0, 100),
    }


def _provenance(record: RunRecord) -> View:
    digests = [
        (f"{variant.name}: {kind}", digest) for variant in record.variants for kind, digest in variant.artifacts.items()
    ]
    return {"versions": views.version_lines(record), "digests": digests}
