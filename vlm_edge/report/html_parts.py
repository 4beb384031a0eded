"""What the sections of a page are put together from: tables that become cards on a narrow screen, badges, lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.report.escape import markup
from vlm_edge.report.numbers import VERDICT_WORDS, bound_text, format_of, interval_text, is_exact, value_text
from vlm_edge.report.svg import tag

LONG = 60
"""Letters of a value that takes a whole line in a list of facts."""


@dataclass(frozen=True)
class Head:
    """A table's column: its title and the lines below it.

    ``kind`` is a class of its cells: ``number``, ``name``, ``plot``.
    """

    title: str
    below: str = ""
    kind: str = ""


def section(anchor: str, title: str, body: str) -> str:
    return tag("section", tag("h2", markup(title)), body, id=anchor)


def note(text: str) -> str:
    return tag("p", markup(text), class_="note")


def badge(verdict: Verdict) -> str:
    """The verdict as a word in its colour."""
    return tag("span", markup(VERDICT_WORDS[verdict]), class_=f"badge {verdict.value}")


def table(heads: Sequence[Head], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table; on a narrow screen each row is a card, whose lines are labelled with the columns' titles.

    Args:
        rows: cells as markup; an empty one is left out of a card.
    """
    top = "".join(
        tag("th", markup(head.title), _below(head.below), scope="col", class_=head.kind or None) for head in heads
    )
    body = "".join(
        tag(
            "tr",
            *(
                tag("td", cell, data_label=head.title, class_=f"{head.kind}{'' if cell else ' none'}".strip() or None)
                for head, cell in zip(heads, row, strict=True)
            ),
        )
        for row in rows
    )
    inner = tag("table", tag("thead", tag("tr", top)), tag("tbody", body), class_=f"cards {kind}".strip())
    return tag("div", inner, class_="wide")


def _below(text: str) -> str:
    return "".join(tag("span", markup(line), class_="below") for line in text.splitlines())


def number(found: Measurement | None, *, unit: bool = False, count: bool = True) -> str:
    """A measurement as a cell: its value, and below it the interval and n."""
    if found is None:
        return ""
    shown_unit = f" {format_of(found).unit}" if unit and format_of(found).unit else ""
    lines = [interval_text(found)]
    if count and not is_exact(found):
        lines.append(f"n {found.n}")
    below = "".join(tag("span", markup(line), class_="below") for line in lines)
    return tag("span", tag("b", markup(value_text(found))), markup(shown_unit), class_="value") + below


def judged_word(judgement: Judgement | None) -> str:
    """The verdict below a number, with its bound."""
    if judgement is None:
        return ""
    text = f"{VERDICT_WORDS[judgement.verdict]} ({bound_text(judgement)})"
    return tag("span", markup(text), class_=f"judged {judgement.verdict.value}")


def name_cell(name: str, *notes: str) -> str:
    """A variant's or slice's name, with notes below it."""
    return tag("b", markup(name)) + "".join(tag("span", markup(text), class_="below") for text in notes if text)


def facts(lines: Iterable[tuple[str, str]]) -> str:
    """Names and values as a list in columns; a long value has a line of its own."""
    items = "".join(
        tag("div", tag("dt", markup(name)), tag("dd", markup(value)), class_="long" if len(value) > LONG else None)
        for name, value in lines
    )
    return tag("dl", items, class_="facts")


def folded(summary: str, body: str) -> str:
    """What is opened by a click."""
    return tag("details", tag("summary", markup(summary)), body)


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(class of the swatch, text) one after another."""
    items = (tag("li", tag("span", class_=f"swatch {kind}"), markup(text)) for kind, text in entries)
    return tag("ul", *items, class_="legend")
