"""What each layer alone costs when it is quantized, ranked, and which layers stayed float for the task's metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_edge.core.record import StageRun
from vlm_edge.report.escape import markup
from vlm_edge.report.html_parts import Head, facts, folded, name_cell, note, table
from vlm_edge.report.svg import Scale, axis_row, scale_over, tag, whisker_row
from vlm_edge.report.views import SensitivityRow, sensitivity_rows

MOST_SENSITIVE = 12
_REASONS = {
    "keep_float": "float: keep_float",
    "noise": "float: too noisy",
    "max_drop_pt": "float: max_drop_pt",
}


def sensitivity_part(run: StageRun) -> str:
    """The ranking of a quantize stage run, and its fallback; empty where it has neither."""
    rows = sensitivity_rows(run)
    body = _fallback(run)
    if not rows:
        return body
    by_task = any(row.drop is not None for row in rows)
    rows.sort(key=lambda row: (0.0 if row.drop is None else -row.drop[1], row.sqnr_db))
    most = rows[:MOST_SENSITIVE]
    body += tag("h3", markup(f"The {len(most)} most sensitive of {len(rows)} layers")) + _ranking(most, by_task)
    text = "Each layer quantized alone, all others float: signal to noise at its component's worst output"
    text += ", and what the task's metric loses, with its 95% interval." if by_task else "."
    body += note(text)
    return body + (folded(f"all {len(rows)} layers, ranked", _ranking(rows, by_task)) if rows != most else "")


def _ranking(rows: Sequence[SensitivityRow], by_task: bool) -> str:
    if by_task:
        scale = scale_over([0.0, *(end for row in rows for end in row.drop or ())], 0, 100)
    else:
        scale = scale_over([row.sqnr_db for row in rows], 0, 100)
    heads = [Head("layer", kind="name"), Head("in the result"), Head("alone", "dB", "number")]
    heads += [Head("alone, drop", "points", "number")] if by_task else []
    heads.append(Head("alone, drop in points" if by_task else "alone, dB", kind="plot"))
    cells = [
        [
            name_cell(row.name, f"{row.component}, {row.operator}"),
            markup(_REASONS.get(row.why, "float") if row.is_float else "quantized"),
            markup(f"{row.sqnr_db:.1f}"),
            *([markup("" if row.drop is None else f"{row.drop[1]:.2f}")] if by_task else []),
            _dot(row, scale, by_task),
        ]
        for row in rows
    ]
    return table(heads, [*cells, [*[""] * (len(heads) - 1), axis_row(scale)]], kind="forest")


def _dot(row: SensitivityRow, scale: Scale, by_task: bool) -> str:
    if not by_task:
        return whisker_row(scale, [("plain", row.sqnr_db, row.sqnr_db, row.sqnr_db)], label=f"{row.sqnr_db:.1f} dB")
    if row.drop is None:
        return ""
    low, value, high = row.drop
    return whisker_row(scale, [("plain", low, value, high)], label=f"drop {value:.2f} points", zero=True)


def _fallback(run: StageRun) -> str:
    """The drop before and after layers went back to float, and what each of them was left float for."""
    found = run.facts.get("task_drop")
    if not isinstance(found, Mapping):
        return ""
    drawn = run.facts.get("metric_samples", {})
    lines = [
        ("bound", f"{found['max_drop_pt']:g} points"),
        ("drop before", _interval(found["before"])),
        ("drop after", _interval(found["after"])),
        ("layers left float", str(len(found["left_float"]))),
        ("measured on", f"{drawn.get('images', 0):,} images of the {drawn.get('split', '?')} split"),
        ("choices measured", str(len(found["tried"]))),
    ]
    body = tag("h3", "Layers left in float for the task's metric") + facts(lines)
    if not found["left_float"]:
        return body + note("Every layer stays quantized: the drop's interval ends within the bound.")
    heads = [Head("layer", kind="name"), Head("alone", "dB", "number"), Head("drop without it", "points", "number")]
    rows = [
        [
            name_cell(str(row["name"]), str(row["component"])),
            markup(f"{row['sqnr_db']:.1f}"),
            markup("" if row["without_it"] is None else _interval(row["without_it"])),
        ]
        for row in found["left_float"]
    ]
    text = "Drop without it: this layer quantized after all, the others of the list float."
    return body + table(heads, rows, kind="dense") + note(text)


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
