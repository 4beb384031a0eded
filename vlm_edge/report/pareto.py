"""The picture of accuracy against latency against size: which variants no other beats."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vlm_edge.core.budget import Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord
from vlm_edge.report.escape import markup
from vlm_edge.report.numbers import format_of, measurement_text
from vlm_edge.report.svg import Scale, scale_over, tag
from vlm_edge.report.views import at_one_load

LATENCIES = ("latency_p90_ms", "latency_p50_ms")
LARGEST_RADIUS = 20.0
SMALLEST_RADIUS = 4.0
_LETTER = 8.0
"""Width of one letter of a label, in pixels, on the safe side; ideographs take two."""
_LINE = 15.0

Place = tuple[float, float]
"""x and y, in pixels."""


@dataclass(frozen=True)
class Point:
    """One variant. ``size`` is in bytes, None where it isn't known; ``role`` is ``baseline``, ``best`` or empty."""

    name: str
    latency: Measurement
    accuracy: Measurement
    size: float | None
    verdict: Verdict
    role: str


@dataclass(frozen=True)
class Box:
    """A rectangle that a label takes or must not touch."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def pareto_points(record: RunRecord) -> list[Point]:
    """The variants that have an accuracy and a latency, as in one sitting: p90 where all have it, else p50."""
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
    """The points that none is at once faster and more accurate than (or equal in one), fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda each: (each.latency.value, -each.accuracy.value)):
        if not kept or point.accuracy.value > kept[-1].accuracy.value:
            kept.append(point)
    return kept


def beaten(point: Point, points: Sequence[Point]) -> bool:
    """Whether another is no worse in accuracy, latency and size, and better in one of them."""
    return any(_beats(other, point) for other in points)


def _beats(one: Point, other: Point) -> bool:
    pairs = [
        (one.latency.value, other.latency.value),
        (-one.accuracy.value, -other.accuracy.value),
        (one.size or math.inf, other.size or math.inf),
    ]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def pareto_svg(points: Sequence[Point], width: int, height: int) -> str:
    """The picture, ``width`` x ``height`` pixels. A dot's area goes with the size on disk; whiskers are intervals."""
    left, right, top, bottom = 58, width - 14, 22, height - 40
    across = scale_over(
        (end for point in points for end in (point.latency.low, point.latency.high)), left, right, log=True, margin=0.1
    )
    accuracies = [end for point in points for end in (point.accuracy.low, point.accuracy.high)]
    up = scale_over(accuracies, bottom, top, margin=0.12)
    largest = max((point.size or 0.0 for point in points), default=0.0)
    radii = [_radius(point.size, largest) for point in points]
    places = [(across.place(point.latency.value), up.place(point.accuracy.value)) for point in points]
    stairs = _stairs(
        [(across.place(each.latency.value), up.place(each.accuracy.value)) for each in front(points)], right
    )
    parts = [*_axes(points, across, up, (left, right, top, bottom)), _path(stairs)]
    order = sorted(range(len(points)), key=lambda index: -radii[index])
    parts += [_whiskers(points[index], across, up) for index in order]
    parts += [_dot(points[index], places[index], radii[index], points) for index in order]
    frame = Box(left + 2, top, right, bottom)
    lines = [_strip(one, other) for one, other in pairwise(stairs)]
    lines += [_strip(*ends) for point in points for ends in _whisker_ends(point, across, up)]
    parts += _labels(points, places, radii, lines, frame)
    best = ", ".join(point.name for point in front(points))
    return tag(
        "svg",
        tag("title", markup(f"Accuracy against latency. On the Pareto front: {best}")),
        *parts,
        class_="picture",
        viewBox=f"0 0 {width} {height}",
        role="img",
    )


def _radius(size: float | None, largest: float) -> float:
    share = size / largest if size and largest else 0.0
    return max(SMALLEST_RADIUS, LARGEST_RADIUS * math.sqrt(share))


def _axes(points: Sequence[Point], across: Scale, up: Scale, frame: tuple[int, int, int, int]) -> Iterator[str]:
    left, right, top, bottom = frame
    accuracy, latency = format_of(points[0].accuracy), format_of(points[0].latency)
    most = 1.0 if accuracy.unit == "%" else math.inf
    yield tag("rect", x=left, y=top, width=right - left, height=bottom - top, class_="frame")
    for tick in up.ticks(6):
        if tick <= most:
            y = up.place(tick)
            yield tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid")
            yield tag("text", markup(f"{tick * accuracy.scale:g}"), x=left - 6, y=y + 4, text_anchor="end")
    for tick in across.ticks(max(3, (right - left) // 70)):
        x = across.place(tick)
        yield tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid")
        yield tag("text", markup(f"{tick:g}"), x=x, y=bottom + 16, text_anchor="middle")
    unit = f" ({accuracy.unit})" if accuracy.unit else ""
    yield tag("text", markup(f"{accuracy.title}{unit}"), x=4, y=13, class_="axis-title")
    title = f"latency {latency.title} ({latency.unit}, log)"
    yield tag("text", markup(title), x=right, y=bottom + 33, text_anchor="end", class_="axis-title")


def _stairs(places: Sequence[Place], right: float) -> list[Place]:
    """The edge of what is reached: from each point of the front to the next one, and on to the right."""
    corners = [places[0]]
    for x, y in places[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (right, corners[-1][1])]


def _path(corners: Sequence[Place]) -> str:
    return tag("path", d="M " + " L ".join(f"{x:.1f} {y:.1f}" for x, y in corners), class_="front")


def _strip(one: Place, other: Place) -> Box:
    """What a line from one place to another takes."""
    (x1, y1), (x2, y2) = one, other
    return Box(min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1)


def _whisker_ends(point: Point, across: Scale, up: Scale) -> list[tuple[Place, Place]]:
    """Both ends of the interval of the latency, and of the accuracy."""
    x, y = across.place(point.latency.value), up.place(point.accuracy.value)
    return [
        ((across.place(point.latency.low), y), (across.place(point.latency.high), y)),
        ((x, up.place(point.accuracy.low)), (x, up.place(point.accuracy.high))),
    ]


def _whiskers(point: Point, across: Scale, up: Scale) -> str:
    kind = "base" if point.role == "baseline" else point.verdict.value
    return "".join(
        tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=f"whisker thin {kind}")
        for (x1, y1), (x2, y2) in _whisker_ends(point, across, up)
    )


def _dot(point: Point, place: Place, radius: float, points: Sequence[Point]) -> str:
    x, y = place
    hollow = " beaten" if beaten(point, points) else ""
    kind = f"dot {point.verdict.value}{hollow}" if point.role != "baseline" else "dot base"
    size = f", {point.size / 1e6:,.2f} MB" if point.size else ""
    text = f"{point.name}: {measurement_text(point.accuracy)}; {measurement_text(point.latency)}{size}"
    title = tag("title", markup(text))
    if point.role == "baseline":
        corners = f"{x:.1f},{y - radius:.1f} {x + radius:.1f},{y:.1f} {x:.1f},{y + radius:.1f} {x - radius:.1f},{y:.1f}"
        return tag("polygon", title, points=corners, class_=kind)
    ring = tag("circle", cx=x, cy=y, r=radius + 4, class_="ring") if point.role == "best" else ""
    return ring + tag("circle", title, cx=x, cy=y, r=radius, class_=kind)


def _labels(
    points: Sequence[Point], places: Sequence[Place], radii: Sequence[float], lines: Sequence[Box], frame: Box
) -> Iterator[str]:
    """A label for each point, none touching another nor a dot, nor a line where there is room.

    A thin line leads to one that lies apart.
    """
    taken = [Box(x - r, y - r, x + r, y + r) for (x, y), r in zip(places, radii, strict=True)]
    for point, (x, y), radius in zip(points, places, radii, strict=True):
        text = shortened(point.name, frame)
        width = _LETTER * sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
        box = free_place(x, y, radius, width, [*taken, *lines], frame) or free_place(x, y, radius, width, taken, frame)
        if box is None:
            continue
        taken.append(box)
        near_x, near_y = min(max(x, box.left), box.right), (box.top + box.bottom) / 2
        if math.hypot(near_x - x, near_y - y) > radius + 14:
            yield tag("line", x1=x, y1=y, x2=near_x, y2=near_y, class_="leader")
        yield tag("text", markup(text), x=box.left, y=box.bottom - 4, class_="label")


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
