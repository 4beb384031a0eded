"""The Pareto picture: accuracy against latency, with the size on disk as the area of a dot."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from vlm_edge.core.budget import Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord
from vlm_edge.report.numbers import format_of, measurement_text
from vlm_edge.report.scale import Scale, scale_over
from vlm_edge.report.views import at_one_load

LATENCIES = ("latency_p90_ms", "latency_p50_ms")
LARGEST_RADIUS = 20.0
SMALLEST_RADIUS = 4.0
_LETTER = 8.0
"""An upper bound of a label's width for each letter, in pixels; ideographs take two."""
_LINE = 15.0

Place = tuple[float, float]
"""x and y, in pixels."""


@dataclass(frozen=True)
class Point:
    """One variant. ``size`` is in bytes, None if unknown; ``role`` is ``baseline``, ``best`` or empty."""

    name: str
    latency: Measurement
    accuracy: Measurement
    size: float | None
    verdict: Verdict
    role: str


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels: a label, or one that labels must not touch."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True)
class Mark:
    """A point's dot and the ends of its two whiskers. ``kind``: the class of its colour; ``title``: its tooltip."""

    name: str
    title: str
    place: Place
    radius: float
    whiskers: tuple[tuple[Place, Place], ...]
    kind: str
    role: str
    beaten: bool


@dataclass(frozen=True)
class Label:
    """A point's name; x and y are the left end of its base line. ``leader``: a line to it from a dot that is apart."""

    text: str
    x: float
    y: float
    leader: tuple[Place, Place] | None


@dataclass(frozen=True)
class Picture:
    """Everything of the picture with its place. ``up`` and ``across``: places and numbers of the ticks; ``marks``: the
    largest first, so that none is hidden; ``stairs``: the Pareto front; ``front``: its variants."""

    width: int
    height: int
    frame: Box
    front: Sequence[str]
    up: Sequence[tuple[float, str]]
    across: Sequence[tuple[float, str]]
    up_title: str
    across_title: str
    stairs: Sequence[Place]
    marks: Sequence[Mark]
    labels: Sequence[Label]


def pareto_points(record: RunRecord) -> list[Point]:
    """The variants with an accuracy and a latency at one load: p90 where all have it, else p50."""
    shown = at_one_load(record)
    found = [(variant, shown[variant.name]) for variant in record.variants]
    measured = [(variant, metrics) for variant, metrics in found if "accuracy" in metrics]
    for latency in LATENCIES:
        if measured and all(latency in metrics for _, metrics in measured):
            break
    points = []
    for variant, metrics in measured:
        if latency not in metrics or metrics[latency].value <= 0:
            continue
        size = metrics["size_bytes"].value if "size_bytes" in metrics else None
        baseline = variant is record.variants[0]
        role = "baseline" if baseline else "best" if variant.name == record.best else ""
        points.append(Point(variant.name, metrics[latency], metrics["accuracy"], size, variant.verdict, role))
    return points


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front of latency and accuracy, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda each: (each.latency.value, -each.accuracy.value)):
        if not kept or point.accuracy.value > kept[-1].accuracy.value:
            kept.append(point)
    return kept


def beaten(point: Point, points: Sequence[Point]) -> bool:
    """Whether another point is no worse in accuracy, latency and size, and better in one of them."""

    def costs(each: Point) -> tuple[float, float, float]:
        return each.latency.value, -each.accuracy.value, each.size or math.inf

    own = costs(point)
    return any(all(a <= b for a, b in zip(costs(other), own, strict=True)) and costs(other) != own for other in points)


def pareto_picture(points: Sequence[Point], width: int, height: int) -> Picture:
    """Lay out the picture, ``width`` x ``height`` pixels."""
    frame = Box(58, 22, width - 14, height - 40)
    accuracy, latency = format_of(points[0].accuracy), format_of(points[0].latency)
    times = (end for point in points for end in (point.latency.low, point.latency.high))
    across = scale_over(times, frame.left, frame.right, log=True, margin=0.1)
    shares = (end for point in points for end in (point.accuracy.low, point.accuracy.high))
    up = scale_over(shares, frame.bottom, frame.top, margin=0.12)
    fastest = front(points)
    stairs = _stairs([_place(point, across, up) for point in fastest], frame.right)
    marks = _marks(points, across, up)
    lines = [_strip(*ends) for ends in (*pairwise(stairs), *(ends for mark in marks for ends in mark.whiskers))]
    most = 1.0 if accuracy.unit == "%" else math.inf
    return Picture(
        width=width,
        height=height,
        frame=frame,
        front=[point.name for point in fastest],
        up=[(up.place(tick), f"{tick * accuracy.scale:g}") for tick in up.ticks(6) if tick <= most],
        across=[(across.place(tick), f"{tick:g}") for tick in across.ticks(max(3, (width - 72) // 70))],
        up_title=accuracy.title + (f" ({accuracy.unit})" if accuracy.unit else ""),
        across_title=f"latency {latency.title} ({latency.unit}, log)",
        stairs=stairs,
        marks=sorted(marks, key=lambda mark: -mark.radius),
        labels=list(_labels(marks, lines, replace(frame, left=frame.left + 2))),
    )


def _place(point: Point, across: Scale, up: Scale) -> Place:
    return across.place(point.latency.value), up.place(point.accuracy.value)


def _stairs(places: Sequence[Place], right: float) -> list[Place]:
    """The Pareto front as a line: from each of its points across to the next one's latency, and on to the right."""
    corners = [places[0]]
    for x, y in places[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (right, corners[-1][1])]


def _strip(one: Place, other: Place) -> Box:
    """The box around a line, with a pixel on each side."""
    (x1, y1), (x2, y2) = one, other
    return Box(min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1)


def _marks(points: Sequence[Point], across: Scale, up: Scale) -> list[Mark]:
    """Dots with whiskers; a dot's area goes with the size on disk."""
    largest = max((point.size or 0.0 for point in points), default=0.0)
    marks = []
    for point in points:
        x, y = _place(point, across, up)
        share = point.size / largest if point.size and largest else 0.0
        size = f", {point.size / 1e6:,.2f} MB" if point.size else ""
        mark = Mark(
            name=point.name,
            title=f"{point.name}: {measurement_text(point.accuracy)}; {measurement_text(point.latency)}{size}",
            place=(x, y),
            radius=max(SMALLEST_RADIUS, LARGEST_RADIUS * math.sqrt(share)),
            whiskers=(
                ((across.place(point.latency.low), y), (across.place(point.latency.high), y)),
                ((x, up.place(point.accuracy.low)), (x, up.place(point.accuracy.high))),
            ),
            kind="base" if point.role == "baseline" else point.verdict.value,
            role=point.role,
            beaten=beaten(point, points),
        )
        marks.append(mark)
    return marks


def _labels(marks: Sequence[Mark], lines: Sequence[Box], frame: Box) -> Iterator[Label]:
    """A label for each dot, none touching another nor a dot, nor a line where there is room."""
    taken = [
        Box(mark.place[0] - r, mark.place[1] - r, mark.place[0] + r, mark.place[1] + r)
        for mark in marks
        for r in [mark.radius]
    ]
    for mark in marks:
        (x, y), radius = mark.place, mark.radius
        text = shortened(mark.name, frame)
        width = _LETTER * sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
        box = free_place(x, y, radius, width, [*taken, *lines], frame) or free_place(x, y, radius, width, taken, frame)
        if box is None:
            continue
        taken.append(box)
        near = min(max(x, box.left), box.right), (box.top + box.bottom) / 2
        apart = math.hypot(near[0] - x, near[1] - y) > radius + 14
        yield Label(text, box.left, box.bottom - 4, leader=((x, y), near) if apart else None)


def shortened(name: str, frame: Box) -> str:
    """A name that takes at most 45% of the picture's width; its middle is left out."""
    most = max(12, int(0.45 * (frame.right - frame.left) / _LETTER))
    if len(name) <= most:
        return name
    return f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def free_place(x: float, y: float, radius: float, width: float, taken: Sequence[Box], frame: Box) -> Box | None:
    """The nearest box of ``width`` around a dot that touches none of ``taken`` and lies within the frame."""
    reach = math.hypot(frame.right - frame.left, frame.bottom - frame.top)
    gap = radius + 4
    while gap < reach:
        for angle in (0, 180, 270, 90, 330, 30, 210, 150, 300, 60, 240, 120):
            across, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            middle_x, middle_y = x + across * (gap + width / 2), y + down * (gap + _LINE / 2)
            box = Box(middle_x - width / 2, middle_y - _LINE / 2, middle_x + width / 2, middle_y + _LINE / 2)
            inside = frame.left <= box.left and box.right <= frame.right
            inside = inside and frame.top <= box.top and box.bottom <= frame.bottom
            if inside and not any(box.meets(other) for other in taken):
                return box
        gap += 6
    return None
