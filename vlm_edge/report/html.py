"""A run as one HTML file that opens offline: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import vlm_edge
from vlm_edge.core.record import RunRecord
from vlm_edge.report.escape import markup
from vlm_edge.report.html_detail import (
    host_section,
    layers_section,
    measurements_section,
    provenance_section,
    regressions_section,
)
from vlm_edge.report.html_parts import section
from vlm_edge.report.html_results import (
    components_section,
    ladder_section,
    metrics_section,
    pareto_section,
    slices_section,
    verdict_section,
)
from vlm_edge.report.ladder import headline
from vlm_edge.report.svg import tag

Regressions = Mapping[str, Sequence[Mapping[str, Any]]]

# anchor, title, what fills it (None: nothing to show, and the section is left out)
_SECTIONS = (
    ("ladder", "The ladder", ladder_section),
    ("pareto", "Accuracy, latency, size", pareto_section),
    ("components", "Latency by component", components_section),
    ("metrics", "Task metrics", metrics_section),
    ("slices", "Slices", slices_section),
)
_DETAILS = (
    ("layers", "Quantization error", layers_section),
    ("host", "Host", host_section),
    ("provenance", "Provenance", provenance_section),
    ("measurements", "Every measurement", measurements_section),
)


def run_html(record: RunRecord, regressions: Regressions | None = None) -> str:
    """The whole page.

    Args:
        record: the run.
        regressions: the worst regressed samples by variant, as :func:`vlm_edge.report.views.read_regressions` reads.
    """
    filled = [(anchor, title, fill(record)) for anchor, title, fill in _SECTIONS]
    filled.append(("regressions", "Worst regressed samples", regressions_section(record, regressions or {})))
    filled += [(anchor, title, fill(record)) for anchor, title, fill in _DETAILS]
    shown = [(anchor, title, body) for anchor, title, body in filled if body is not None]
    links = "".join(tag("a", markup(title), href=f"#{anchor}") for anchor, title, _ in shown)
    body = verdict_section(record) + tag("nav", links, aria_label="Sections")
    body += "".join(section(anchor, title, content) for anchor, title, content in shown)
    return page(headline(record), body)


def page(title: str, body: str) -> str:
    """A document around a body, with the style inside."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{markup(title)}</title><style>{style}</style>"
    )
    footer = f"Written by vlm-edge {vlm_edge.__version__}. Brackets hold 95% confidence intervals; n counts samples or "
    footer += "queries."
    content = f'<main>{body}<footer><p class="note">{markup(footer)}</p></footer></main>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{content}</body></html>\n'
