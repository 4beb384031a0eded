"""A run, or a comparison of runs, as Markdown: the HTML page without its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_edge.core.record import RunRecord
from vlm_edge.report import render
from vlm_edge.report.compare import Compared, reasons, same_text, shown_metrics, value_tables
from vlm_edge.report.numbers import METRICS
from vlm_edge.report.views import at_one_load, component_times


def run_markdown(record: RunRecord, regressions: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> str:
    """The verdict and its budgets, the ladder, components, slices, samples, layers, host and provenance."""
    times = {name: component_times(metrics) for name, metrics in at_one_load(record).items()}
    components = list(dict.fromkeys(name for parts in times.values() for name in parts))
    return render.markdown(
        "run.md", record=record, regressions=regressions or {}, times=times, components=components, shown=METRICS
    )


def compare_markdown(comparison: Compared) -> str:
    """The metrics of every run, the differences from the first, and the settings, versions and hosts that differ."""
    text = render.markdown(
        "compare.md",
        comparison=comparison,
        metrics=shown_metrics(comparison),
        reasons=reasons(comparison),
        tables=value_tables(comparison),
        same=same_text(comparison),
    )
    return text.rstrip() + "\n"
