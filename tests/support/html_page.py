"""HTML pages as a browser reads them, and the texts of two records' pages.

``python tests/support/html_page.py`` writes the texts again, after a change of the report that is meant.
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
VOID = {"meta", "img", "br", "hr", "link", "input"}
LINES = {"dt", "h1", "h2", "h3", "h4", "li", "p", "summary", "svg", "tr"}


class Page(HTMLParser):
    """The elements, attributes and text of a page, without its style.

    ``wrong`` lists end tags that close what is not open, ``open`` tags that are never closed. ``cells`` holds the words
    by line, tooltips and labels for screen readers included; the record's own JSON and YAML (``pre``) are left out.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.tags: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.cells: list[list[str]] = [[]]
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in LINES:
            self.cells.append([])
        self.cells[-1] += [f"[{value}]" for name, value in attrs if name in ("aria-label", "alt")]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += f"{data}\n"
        if data.strip() and "pre" not in self.open:
            self.cells[-1].append(" ".join(data.split()))

    def lines(self) -> list[str]:
        """Every word, a line for each row of a table."""
        lines = [" | ".join(line) for line in self.cells if line]
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
        (FOLDER / name).write_text("\n".join(Page(page).lines()) + "\n", encoding="utf-8")
