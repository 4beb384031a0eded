"""The page's second half: samples, layers, the host, where everything came from, every number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from vlm_edge.core.record import RunRecord, StageRun, VariantRecord
from vlm_edge.report.escape import markup
from vlm_edge.report.html_parts import Head, facts, folded, name_cell, note, number, table
from vlm_edge.report.html_sensitivity import sensitivity_part
from vlm_edge.report.ladder import deciding_variant
from vlm_edge.report.numbers import format_of, interval_text, is_exact, measured_text, value_text
from vlm_edge.report.svg import Scale, axis_row, scale_over, tag, whisker_row
from vlm_edge.report.views import (
    LayerRow,
    control_of,
    host_lines,
    layer_rows,
    plain,
    quantize_run,
    shared_conditions,
    version_lines,
)

WORST_LAYERS = 12
_NEUTRAL = "plain"


def regressions_section(record: RunRecord, regressions: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """The samples that lost most, each with its image and both answers; the deciding variant's first."""
    known = [variant.name for variant in record.variants if regressions.get(variant.name)]
    if not known:
        return None
    main = record.decided_by if record.decided_by in known else known[-1]
    shown = tag("h3", markup(main)) + _samples(regressions[main])
    return shown + "".join(folded(name, _samples(regressions[name])) for name in known if name != main)


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    return tag("div", *(_sample(sample) for sample in samples), class_="samples")


def _sample(sample: Mapping[str, Any]) -> str:
    image = str(sample.get("thumbnail") or "")
    picture = tag("p", "no image was kept", class_="noimage note")
    if image.startswith("data:image/"):
        picture = f'<img src="{markup(image)}" alt="{markup(sample.get("image", ""))}">'
    lines = [
        ("expected", plain(sample.get("expected"))),
        ("baseline", plain(sample.get("baseline"))),
        ("now", plain(sample.get("candidate"))),
        ("score", f"{plain(sample.get('score_before'))} → {plain(sample.get('score_after'))}"),
        ("sample", plain(sample.get("id"))),
    ]
    question = str(sample.get("text") or "")
    asked = tag("p", markup(question), class_="question") if question else ""
    return tag("article", picture, tag("div", asked, facts(lines)), class_="sample")


def layers_section(record: RunRecord) -> str | None:
    """What quantization cost each component and each layer of the deciding variant, or of the last one quantized."""
    variants = [variant for variant in (deciding_variant(record), *reversed(record.variants)) if variant is not None]
    found = next(((variant, run) for variant in variants if (run := quantize_run(variant)) is not None), None)
    if found is None:
        return None
    variant, run = found
    rows = layer_rows(run)
    text = "Signal to quantization noise in dB on held-out calibration samples: 20 dB is an error of 10%, 40 dB of 1%."
    body = tag("h3", markup(variant.name)) + _components(run) + note(text)
    body += sensitivity_part(run)
    if not rows:
        return body + note("This run's quantize stage kept no error by layer.")
    worst = sorted(rows, key=lambda row: row.worst_db)[:WORST_LAYERS]
    body += tag("h3", markup(f"The {len(worst)} noisiest of {len(rows)} layers")) + _layers(worst, rows)
    entries = (
        "Output: the layer's output against the float graph's, what came before it included. Weight and input: the"
    )
    body += note(f"{entries} rounding of the layer's own.")
    return body + (folded(f"all {len(rows)} layers", _layers(rows, rows)) if len(rows) > len(worst) else "")


def _components(run: StageRun) -> str:
    heads = [Head("component", kind="name"), Head("scheme"), Head("output"), Head("cosine", kind="number")]
    heads += [Head("SQNR", "dB", "number"), Head("size", "MB, float to INT8", "number")]
    rows = []
    for name, fact in run.facts["components"].items():
        outputs = fact.get("outputs") or {"": {}}
        sizes = [fact.get(key) for key in ("float_size_bytes", "size_bytes")]
        size = " → ".join(f"{each / 1e6:,.2f}" for each in sizes if each is not None)
        for output, value in outputs.items():
            scheme = fact.get("scheme", "")
            asked = f"asked: {fact['asked']}" if fact.get("asked", scheme) != scheme else ""
            numbers = [plain(value[key]) if key in value else "" for key in ("cosine", "sqnr_db")]
            cells = [markup(output), *map(markup, numbers), markup(size)]
            rows.append([name_cell(name), markup(scheme) + (note(asked) if asked else ""), *cells])
    return table(heads, rows, kind="dense")


def _layers(rows: Sequence[LayerRow], all_rows: Sequence[LayerRow]) -> str:
    values = [db for row in all_rows for db in (row.weight_db, row.input_db, row.output_db) if db is not None]
    scale = scale_over(values, 0, 100)
    heads = [Head("layer", kind="name"), Head("weight", "dB", "number"), Head("input", "dB", "number")]
    heads += [Head("output", "dB", "number"), Head("output, dB", kind="plot")]
    cells = [
        [
            name_cell(row.name, f"{row.component}, {row.operator}"),
            *(markup("" if db is None else f"{db:.1f}") for db in (row.weight_db, row.input_db, row.output_db)),
            _dots(row, scale),
        ]
        for row in rows
    ]
    return table(heads, [*cells, ["", "", "", "", axis_row(scale)]], kind="forest")


def _dots(row: LayerRow, scale: Scale) -> str:
    if row.output_db is None:
        return ""
    span = (_NEUTRAL, row.output_db, row.output_db, row.output_db)
    return whisker_row(scale, [span], label=f"{row.output_db:.1f} dB")


def host_section(record: RunRecord) -> str:
    """The machine, what was true while latencies were measured, and what its A/A control can tell apart."""
    body = facts(host_lines(record))
    shared, own = shared_conditions(record)
    body += tag("h3", "While latency was measured")
    body += facts(shared) if shared else "" if own else note("No conditions were recorded.")
    if own:
        names = list(dict.fromkeys(name for lines in own.values() for name, _ in lines))
        heads = [Head("condition", kind="name"), *(Head(variant) for variant in own)]
        rows = [[name_cell(each), *(markup(dict(lines).get(each, "")) for lines in own.values())] for each in names]
        body += table(heads, rows, kind="values dense")
    control = control_of(record)
    body += tag("h3", "Noise: one engine against itself (A/A control)")
    if not control:
        return body + note("No A/A control was measured, so nothing says what this host can tell apart.")
    scale = scale_over([1.0, *(end for found in control for end in (found.low, found.high))], 0, 100)
    heads = [Head("percentile", kind="name"), Head("ratio", "x", "number"), Head("told apart from", kind="number")]
    heads.append(Head("", kind="plot"))
    rows = []
    for found in control:
        apart = 100 * max(found.high - 1, 1 / found.low - 1, 0.0)
        span = [(_NEUTRAL, found.low, found.value, found.high)]
        plot = whisker_row(scale, span, limit=1.0, label=measured_text(found))
        rows.append([name_cell(format_of(found).title), number(found), markup(f"{apart:.2g}%"), plot])
    text = (
        "Two processes of the same engine took turns. A difference smaller than the percentage is not told apart here,"
    )
    return (
        body
        + table(heads, [*rows, ["", "", "", axis_row(scale)]], kind="forest")
        + note(f"{text} and a budget that is closer to its measurement is UNDECIDED.")
    )


def provenance_section(record: RunRecord) -> str:
    """Recipe, stage runs, digests, versions, seed, commit."""
    lines = [("commit", record.commit or "unknown"), ("seed", str(record.seed)), ("started", record.started)]
    lines += [("wall time", f"{record.wall_s:,.1f} s"), ("record", f"format {record.format}")]
    body = facts(lines) + tag("h3", "Versions") + facts(version_lines(record))
    body += tag("h3", "Stage runs") + _stage_runs(record)
    digests = [
        (f"{variant.name}: {kind}", digest) for variant in record.variants for kind, digest in variant.artifacts.items()
    ]
    body += folded("digests of every variant's artifacts", facts(digests))
    details = "".join(_stage_facts(variant) for variant in record.variants)
    body += folded("settings, keys and facts of every stage run", details)
    recipe = yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True)
    return body + folded("the recipe as it was understood", tag("pre", markup(recipe)))


def _stage_runs(record: RunRecord) -> str:
    heads = [
        Head("variant", kind="name"),
        Head("stage"),
        Head("artifact"),
        Head("from the store"),
        Head("seconds", kind="number"),
    ]
    rows = [
        [
            name_cell(variant.name),
            markup(f"{run.stage} (implied)" if run.implied else run.stage),
            tag("span", markup(f"{run.kind} {run.digest[:12]}"), class_="mono"),
            "yes" if run.cached else "no",
            markup(f"{run.wall_s:,.1f}"),
        ]
        for variant in record.variants
        for run in variant.runs
    ]
    return table(heads, rows, kind="dense")


def _stage_facts(variant: VariantRecord) -> str:
    return "".join(
        tag("h4", markup(f"{variant.name}: {run.stage}"))
        + facts([("key", run.key), ("digest", run.digest)])
        + tag("pre", markup(json.dumps({"config": run.config, "facts": run.facts}, ensure_ascii=False)))
        for run in variant.runs
    )


def measurements_section(record: RunRecord) -> str | None:
    """Every measurement of every variant."""
    heads = [Head("metric", kind="name"), Head("value", kind="number"), Head("95% interval", kind="number")]
    heads += [Head("n", kind="number"), Head("unit")]
    tables = []
    for variant in record.variants:
        rows = [
            [
                tag("span", markup(found.metric), class_="mono"),
                markup(value_text(found)),
                markup(interval_text(found)),
                "" if is_exact(found) else str(found.n),
                markup(format_of(found).unit),
            ]
            for found in variant.measurements
        ]
        if rows:
            tables.append(folded(f"{variant.name}: {len(rows)} measurements", table(heads, rows, kind="dense")))
    return "".join(tables) or None
