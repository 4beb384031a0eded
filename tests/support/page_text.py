"""Every word of an HTML page, tooltips and labels for screen readers included: a line for each row of a table.

``python tests/support/page_text.py`` writes the pages' texts again, after a change of the report that is meant.
"""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from report_records import full_record, regressions_of

import vlm_edge
from vlm_edge.core.record import RunRecord, read_record
from vlm_edge.report.html import run_html

FOLDER = Path(__file__).parents[1] / "report"
LINES = {"dt", "h1", "h2", "h3", "h4", "li", "p", "summary", "svg", "tr"}
HIDDEN = ("style", "pre")
"""Not told: the style, and the recipe, settings and facts, which stand in the page as they are in the record."""


class _Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[list[str]] = [[]]
        self.hidden = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden = tag in HIDDEN
        if tag in LINES:
            self.lines.append([])
        self.lines[-1] += [f"[{value}]" for name, value in attrs if name in ("aria-label", "alt")]

    def handle_endtag(self, tag: str) -> None:
        self.hidden = self.hidden and tag not in HIDDEN

    def handle_data(self, data: str) -> None:
        if not self.hidden and data.strip():
            self.lines[-1].append(" ".join(data.split()))


def page_lines(page: str) -> list[str]:
    lines = [" | ".join(line) for line in _Text(page).lines if line]
    return [line.replace(f"vlm-edge {vlm_edge.__version__}", "vlm-edge VERSION") for line in lines]


def pages() -> dict[str, str]:
    """The page of the record with numbers by hand, and of the real run, by the name of the file of its text."""
    full = full_record(read_record(FOLDER / "run.json"))
    kept = json.loads((FOLDER / "quickstart.json").read_bytes())
    real = RunRecord.model_validate(kept["record"])
    return {
        "run.page.txt": run_html(full, regressions_of(full)),
        "quickstart.page.txt": run_html(real, kept["regressions"]),
    }


if __name__ == "__main__":
    for name, page in pages().items():
        (FOLDER / name).write_text("\n".join(page_lines(page)) + "\n", encoding="utf-8")
