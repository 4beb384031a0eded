"""Pieces of SVG and HTML as text: escaped tags, scales with round ticks, and rows that stretch with their cell.

A picture has no ids, no script and no font of its own; its colours are classes of report.css, which knows dark from
light. A row gives places along it in percent, so that its width is the cell's and its strokes and dots keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlm_edge.report.escape import markup


def tag(name: str, *children: str, **attributes: object) -> str:
    """One element. Children are markup already; attributes are escaped, ``_`` in their names becomes ``-``, and one
    whose value is None is left out. ``class_`` stands for ``class``."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{markup(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{shown}>{''.join(children)}</{name}>"


def _number(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


@dataclass(frozen=True)
class Scale:
    """Values low..high to places first..last, evenly, or by their logarithm."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value is; values beyond the ends are put on them."""
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, self._within(value)))
        return self.first + (self.last - self.first) * (at - low) / (high - low)

    def _within(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def ticks(self, most: int) -> list[float]:
        """At most ``most`` round values within the scale."""
        return _log_ticks(self.low, self.high, most) if self.log else _even_ticks(self.low, self.high, most)


def scale_over(values: Iterable[float], first: float, last: float, *, log: bool = False, margin: float = 0.06) -> Scale:
    """A scale that holds all values with a margin (a share of their spread); one value alone gets room around it."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(found), max(found)
    if log:
        spread = max(math.log(high / low), 0.2)
        return Scale(low * math.exp(-margin * spread), high * math.exp(margin * spread), first, last, log=True)
    spread = high - low or abs(high) or 1.0
    return Scale(low - margin * spread, high + margin * spread, first, last)


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for step in (power * factor for factor in (1, 2, 2.5, 5, 10, 20, 25, 50)):
        start, end = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if end - start + 1 <= most:
            return [round(index * step, 12) for index in range(start, end + 1)]
    return []


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [float(f"{f}e{power}") for power in powers for f in factors]
        inside = [value for value in found if low <= value <= high]
        if len(inside) <= most:
            return inside if len(inside) > 1 else _even_ticks(low, high, most)
    return [value for value in (10.0**power for power in powers) if low <= value <= high][:most]


def percent(place: float) -> str:
    return f"{place:.2f}%"


def whisker_row(
    scale: Scale,
    spans: Sequence[tuple[str, float, float, float]],
    *,
    limit: float | None = None,
    allowed: str | None = None,
    label: str,
    grid: bool = True,
    zero: bool = False,
) -> str:
    """Intervals on one line: for each (class, low, value, high) a bar from low to high and a dot at the value.

    Args:
        scale: to percent of the row's width.
        limit: where a bound is drawn.
        allowed: ``below`` or ``above``: the side of the bound that is shaded.
        label: what a screen reader says.
        grid: lines at the ticks of :func:`axis_row`; ``zero``: a stronger one at 0.
    """
    parts = [_line(scale.place(tick), "grid", 0, 26) for tick in scale.ticks(3)] if grid else []
    if zero:
        parts.append(_line(scale.place(0.0), "zero", 0, 26))
    if limit is not None:
        edge = scale.place(limit)
        start, end = (scale.first, edge) if allowed == "below" else (edge, scale.last)
        if allowed is not None:
            width = percent(max(end - start, 0))
            parts.append(tag("rect", x=percent(start), y=3, width=width, height=20, class_="allowed"))
        parts.append(_line(edge, "limit", 0, 26))
    for index, (kind, low, value, high) in enumerate(spans):
        y = round(26 * (index + 1) / (len(spans) + 1), 1)
        ends = [percent(scale.place(each)) for each in (low, high)]
        parts.append(tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_=f"whisker {kind}"))
        parts.append(tag("circle", cx=percent(scale.place(value)), cy=y, r=4.5, class_=f"dot {kind}"))
    return tag("svg", *parts, class_="row", width="100%", height=26, role="img", aria_label=label)


def axis_row(scale: Scale, form: str = "{:g}", most: int = 3) -> str:
    """The numbers under a column of rows of the same scale."""
    parts = []
    for tick in scale.ticks(most):
        place = scale.place(tick)
        anchor = "start" if place < 12 else "end" if place > 88 else "middle"
        parts.append(tag("text", markup(form.format(tick)), x=percent(place), y=12, text_anchor=anchor))
    return tag("svg", *parts, class_="row axis", width="100%", height=16, aria_hidden="true")


def _line(place: float, kind: str, top: float, bottom: float) -> str:
    return tag("line", x1=percent(place), x2=percent(place), y1=top, y2=bottom, class_=kind)
