"""The page's first half: the verdict, the ladder, the pictures, what was measured of the answers."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord, VariantRecord
from vlm_edge.report.escape import markup
from vlm_edge.report.html_parts import Head, badge, facts, folded, judged_word, legend, name_cell, note, number, table
from vlm_edge.report.ladder import INCOMPLETE, Cell, Row, deciding_variant, headline, ladder_of, remarks
from vlm_edge.report.numbers import (
    VERDICT_WORDS,
    bound_text,
    format_of,
    limit_of,
    measured_text,
    named_format,
    reason_text,
)
from vlm_edge.report.pareto import pareto_points, pareto_svg
from vlm_edge.report.svg import Scale, axis_row, percent, scale_over, tag, whisker_row
from vlm_edge.report.views import TaskRow, at_one_load, component_times, slice_name, task_rows

MOST_COLUMNS = 9
"""Metrics in the ladder; those without room are among all measurements at the end."""
COLOURS = 8
"""Colours of components; a ninth takes the first again."""


def verdict_section(record: RunRecord) -> str:
    """The verdict in large letters, every budget with what was measured, and what a reader has to know besides."""
    variant = deciding_variant(record)
    words = VERDICT_WORDS[record.verdict] if variant and variant.verdicts else "NOT JUDGED"
    words = INCOMPLETE if record.incomplete is not None else words
    shown = "MET" if record.verdict is Verdict.PASS and words != "NOT JUDGED" else words
    kind = record.verdict.value if words != "NOT JUDGED" else "none"
    top = tag("h1", markup(record.name)) + tag("p", markup(shown), class_=f"verdict {kind}")
    sentence = headline(record).partition(": ")[2].removeprefix(f"{shown}: ")
    top += tag("p", markup(sentence), class_="lead")
    recipe = record.recipe
    about = [
        ("model", recipe.get("model")),
        ("task", _of(recipe, "task", "kind")),
        ("data", _of(recipe, "task", "data")),
    ]
    about += [("target", _of(recipe, "target", "name")), ("host", record.host.get("cpu")), ("started", record.started)]
    about += [("decided by", record.decided_by), ("best", record.best or "none met every budget")]
    about += [("commit", record.commit or "unknown")]
    lines = facts((name, str(value)) for name, value in about if value is not None)
    budgets = _budgets(variant.verdicts) if variant and variant.verdicts else ""
    remarked = "".join(tag("li", markup(line)) for line in remarks(record))
    told = tag("ul", remarked, class_="remarks") if remarked else ""
    return tag("header", top, lines) + budgets + told


def _of(recipe: dict[str, object], group: str, key: str) -> object:
    inner = recipe.get(group)
    return inner.get(key) if isinstance(inner, dict) else None


def _budgets(judgements: Sequence[Judgement]) -> str:
    heads = [Head("budget", kind="name"), Head("bound", kind="number bound"), Head("measured", kind="number")]
    heads += [Head("", kind="plot"), Head("verdict", kind="verdict-cell")]
    worst = (Verdict.FAIL, Verdict.NOT_MEASURED, Verdict.UNDECIDED, Verdict.PASS)
    rows = [
        [
            name_cell(judgement.budget, named_format(judgement.metric).title),
            markup(bound_text(judgement)),
            _exactly(judgement.measured),
            _bullet(judgement),
            badge(judgement.verdict)
            + (tag("span", markup(why), class_="below reason") if (why := reason_text(judgement)) else ""),
        ]
        for judgement in sorted(judgements, key=lambda each: worst.index(each.verdict))
    ]
    return table(heads, rows, kind="budgets")


def _exactly(found: Measurement | None) -> str:
    """With six digits, so that a value close to its bound is seen on the side where it is."""
    if found is None:
        return "nothing"
    value, bracket, rest = measured_text(found).partition(" [")
    return tag("b", markup(value)) + (tag("span", markup(f"{bracket.strip()}{rest}"), class_="below") if rest else "")


def _bullet(judgement: Judgement) -> str:
    """The interval beside its bound, the side that is allowed shaded."""
    found = judgement.measured
    if found is None:
        return ""
    limit = limit_of(judgement)
    scale = scale_over([found.low, found.high, limit], 0, 100, margin=0.25)
    label = f"{measured_text(found)} against {bound_text(judgement)}"
    span = (judgement.verdict.value, found.low, found.value, found.high)
    side = "below" if judgement.bound.startswith("<") else "above"
    return whisker_row(scale, [span], limit=limit, allowed=side, label=label, grid=False)


def ladder_section(record: RunRecord) -> str:
    """Variants down, metrics across."""
    ladder = ladder_of(record, most_columns=MOST_COLUMNS)
    heads = [Head("variant", kind="name")]
    for column in ladder.columns:
        below = ", ".join(part for part in (column.unit, column.n) if part)
        heads.append(Head(column.title, f"{below}\n{column.bound or ''}", "number"))
    rows = [
        [_ladder_name(row, variant), *(_ladder_cell(cell) for cell in row.cells)]
        for row, variant in zip(ladder.rows, record.variants, strict=True)
    ]
    return table(heads, rows, kind="ladder")


def _ladder_name(row: Row, variant: VariantRecord) -> str:
    judged = badge(row.verdict) if variant.verdicts and row.name != "baseline" else ""
    return name_cell(row.name, row.note, " + ".join(variant.stages)) + judged


def _ladder_cell(cell: Cell) -> str:
    below = "".join(tag("span", markup(part), class_="below") for part in (cell.interval, cell.n) if part)
    judged = tag("span", markup(cell.judged), class_=f"judged {cell.verdict.value}") if cell.verdict else ""
    return tag("b", markup(cell.value)) + below + judged


def pareto_section(record: RunRecord) -> str | None:
    """The picture in two shapes, of which the screen's width takes one, and what its marks mean."""
    points = pareto_points(record)
    if len(points) < 2:
        return None
    wide = tag("div", pareto_svg(points, 1040, 440), class_="wide-only")
    narrow = tag("div", pareto_svg(points, 360, 400), class_="narrow-only")
    entries = [("base diamond", "baseline"), ("best", "best"), ("pass", "met"), ("fail", "missed")]
    entries += [("undecided", "undecided"), ("not_measured", "a budget not measured")]
    entries += [("beaten", "hollow: another variant is no worse in all three"), ("line", "Pareto front")]
    shown = {point.name for point in points}
    absent = [variant.name for variant in record.variants if variant.name not in shown]
    told = f" Not in the picture, since nothing was measured: {', '.join(absent)}." if absent else ""
    text = (
        "The area of a dot goes with the size on disk; lines through it are 95% intervals. Latencies are the "
        "baseline's over each variant's speed-up, as in one sitting."
    )
    return wide + narrow + legend(entries) + note(text + told)


def components_section(record: RunRecord) -> str | None:
    """A bar for each variant, in pieces, and the numbers below."""
    shown = at_one_load(record)
    times = {name: component_times(metrics) for name, metrics in shown.items()}
    names = list(dict.fromkeys(name for parts in times.values() for name in parts))
    if not names:
        return None
    measured = {name: metrics.get("latency_p50_ms") for name, metrics in shown.items()}
    ends = [sum(found.value for found in parts.values()) for parts in times.values()]
    ends += [found.value for found in measured.values() if found is not None]
    scale = Scale(0.0, 1.02 * max(ends), 0.0, 100.0)
    rows = [
        [name_cell(name), _stack(name, parts, names, scale, measured[name])] for name, parts in times.items() if parts
    ]
    rows.append(["", axis_row(scale, most=5) + tag("span", "ms", class_="below")])
    bars = table([Head("variant", kind="name"), Head("", kind="plot broad")], rows, kind="bars")
    entries = [(f"c{names.index(name) % COLOURS}", name) for name in names]
    heads = [Head("variant", kind="name"), *(Head(name, "p50, ms", "number") for name in names)]
    heads.append(Head("end to end", "p50, ms", "number"))
    numbers = [
        [name_cell(name), *(number(parts.get(each)) for each in names), number(measured[name])]
        for name, parts in times.items()
        if parts
    ]
    text = "Medians of each part of a query; the mark is the median end to end, which their sum need not meet."
    return legend(entries) + bars + note(text) + table(heads, numbers)


def _stack(
    variant: str, parts: dict[str, Measurement], names: Sequence[str], scale: Scale, whole: Measurement | None
) -> str:
    pieces, start = [], 0.0
    for name, found in parts.items():
        left, right = scale.place(start), scale.place(start + found.value)
        title = tag("title", markup(f"{name}: {measured_text(found)}"))
        kind = f"c{names.index(name) % COLOURS}"
        pieces.append(
            tag("rect", title, x=percent(left), y=4, width=percent(right - left), height=18, class_=f"piece {kind}")
        )
        start += found.value
    if whole is not None:
        x = percent(scale.place(whole.value))
        pieces.append(tag("line", x1=x, x2=x, y1=0, y2=26, class_="mark"))
    label = f"{variant}: " + ", ".join(f"{name} {measured_text(found)}" for name, found in parts.items())
    return tag("svg", *pieces, class_="row", width="100%", height=26, role="img", aria_label=label)


def metrics_section(record: RunRecord) -> str | None:
    """Every metric of the task for every variant: the baseline's, the variant's, what was lost."""
    return _by_variant(record, slices=False)


def slices_section(record: RunRecord) -> str | None:
    """Every slice for every variant, with a forest plot of what was lost."""
    return _by_variant(record, slices=True)


def _by_variant(record: RunRecord, *, slices: bool) -> str | None:
    """The deciding variant's table open, the others' to be opened."""
    tables = {
        variant.name: _task_table(rows, variant, first="slice" if slices else "metric")
        for variant in record.variants
        if (variant is not record.variants[0] or variant.name == record.decided_by)
        and (rows := task_rows(record, variant, slices=slices))
    }
    if not tables:
        return None
    main = record.decided_by if record.decided_by in tables else next(reversed(tables))
    others = "".join(folded(name, body) for name, body in tables.items() if name != main)
    return tag("h3", markup(main)) + tables[main] + others


def _task_table(rows: Sequence[TaskRow], variant: VariantRecord, *, first: str) -> str:
    judged = {judgement.metric: judgement for judgement in variant.verdicts}
    drops = [row.drop for row in rows if row.drop is not None]
    heads = [Head(first, kind="name"), Head("baseline", kind="number"), Head("this variant", kind="number")]
    heads += [Head("drop", "pt", "number"), Head("kept", "%", "number")]
    scale = None
    if drops:
        limits = [limit_of(judged[drop.metric]) for drop in drops if drop.metric in judged]
        scale = scale_over([0.0, *limits, *(end for drop in drops for end in (drop.low, drop.high))], 0, 100)
        heads.append(Head("drop with its interval", kind="plot"))
    cells = []
    for row in rows:
        title = slice_name(row) if first == "slice" else named_format(row.metric).title
        units = format_of(row.found).unit
        found = number(row.found, unit=bool(units)) + judged_word(judged.get(row.found.metric))
        line = [name_cell(title), number(row.baseline, unit=bool(units)), found]
        line += [
            number(each) + judged_word(judged.get(each.metric)) if each is not None else ""
            for each in (row.drop, row.ratio)
        ]
        if scale is not None:
            line.append(_forest(row.drop, scale, judged) if row.drop is not None else "")
        cells.append(line)
    if scale is not None:
        cells.append(["", "", "", "", "", axis_row(scale)])
    return table(heads, cells, kind="forest")


def _forest(drop: Measurement, scale: Scale, judged: dict[str, Judgement]) -> str:
    judgement = judged.get(drop.metric)
    kind = judgement.verdict.value if judgement else "plain"
    limit = limit_of(judgement) if judgement else None
    label = f"drop {measured_text(drop)}"
    span = (kind, drop.low, drop.value, drop.high)
    return whisker_row(scale, [span], limit=limit, allowed="below" if judgement else None, label=label, zero=True)
