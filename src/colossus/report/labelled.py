"""Points with words beside them over two logarithmic axes, and lines: a roofline, a front of choices, a scaling curve.

A label takes the nearest free place around its point, with a thin line to it where that is far; where there is none it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from colossus.report.grid import CHARACTER, grid
from colossus.report.svg import Point, Scale, log_ticks, nice_ticks

_LINE = 13.0
_DISTANCES = (4.0, 16.0, 30.0, 46.0, 64.0)
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One point, what is written beside it, and what the pointer tells."""

    x: float
    y: float
    label: str
    words: str
    css: str = "pick"
    radius: float = 4.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points; ``label`` stands at its end, above it."""

    points: Sequence[Point]
    css: str
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    x_name: str
    y_name: str
    spots: Sequence[Spot]
    lines: Sequence[Line] = ()
    format_x: Callable[[float], str] = field(default=lambda value: f"{value:g}")
    format_y: Callable[[float], str] = field(default=lambda value: f"{value:g}")
    x_ticks: Sequence[float] | None = None


def draw(chart: Labelled, *, width: float, height: float) -> str:
    """SVG elements within ``width`` x ``height``."""
    x_low, x_high = _range([spot.x for spot in chart.spots], [point[0] for line in chart.lines for point in line.points])
    y_low, y_high = _range([spot.y for spot in chart.spots], [point[1] for line in chart.lines for point in line.points])
    y_ticks = _ticks(y_low, y_high, 9)
    margin = 12 + CHARACTER * max((len(chart.format_y(tick)) for tick in y_ticks), default=1)
    x = Scale(low=x_low, high=x_high, start=margin, end=width - 16, log=True)
    y = Scale(low=y_low, high=y_high, start=height - 40, end=24, log=True)
    return "".join([_grid(chart, x, y, y_ticks), *(_line(line, x, y) for line in chart.lines), *_spots(chart, x, y)])


def _range(spots: Sequence[float], ends: Sequence[float]) -> tuple[float, float]:
    """Around all values, with room for points that stand on the edge."""
    values = [value for value in (*spots, *ends) if value > 0] or [1.0]
    low, high = min(values), max(values)
    room = max((high / low) ** 0.05, 1.15)
    return low / room, high * room


def _ticks(low: float, high: float, most: int) -> list[float]:
    """By logarithm; powers of ten alone where that is too many, even steps where it is too few."""
    ticks = log_ticks(low, high)
    if len(ticks) > most:
        ticks = [tick for tick in ticks if math.isclose(math.log10(tick), round(math.log10(tick)), abs_tol=1e-9)]
    return ticks if len(ticks) >= 3 else nice_ticks(low, high, 5)


def _grid(chart: Labelled, x: Scale, y: Scale, y_ticks: Sequence[float]) -> str:
    x_ticks = list(chart.x_ticks) if chart.x_ticks is not None else _ticks(x.low, x.high, 12)
    told = [(at, chart.format_x(at)) for at in x_ticks if x.low <= at <= x.high]
    return grid(x, y, (told, [(at, chart.format_y(at)) for at in y_ticks]), (chart.x_name, chart.y_name))


def _line(line: Line, x: Scale, y: Scale) -> str:
    points = [(x(a), y(b)) for a, b in line.points]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    end = points[-1]
    label = f'<text class="name" x="{end[0]:.1f}" y="{end[1] - 6:.1f}" text-anchor="end">{escape(line.label)}</text>' if line.label else ""
    return f'<path class="{line.css}" d="{path}"/>{label}'


def _spots(chart: Labelled, x: Scale, y: Scale) -> Iterator[str]:
    """Points, then their labels, each where it touches no point and no label placed before, and no line either where it can."""
    centres = [(x(spot.x), y(spot.y), spot.radius) for spot in chart.spots]
    taken: list[Box] = [(a - r, b - r, a + r, b + r) for a, b, r in centres]
    taken += [_words_box(x(line.points[-1][0]), y(line.points[-1][1]), line.label) for line in chart.lines if line.label]
    lines = [box for line in chart.lines for box in _along([(x(a), y(b)) for a, b in line.points])]
    for spot, (a, b, radius) in zip(chart.spots, centres, strict=True):
        yield f'<circle class="{spot.css}" cx="{a:.1f}" cy="{b:.1f}" r="{radius:.1f}"><title>{escape(spot.words)}</title></circle>'
    for spot, (a, b, radius) in zip(chart.spots, centres, strict=True):
        frame = (x.start, y.end, x.end, y.start)
        places = [place for place in _around(spot.label, a, b, radius) if _within(place[0], frame) and _is_free(place[0], taken)]
        if not places:  # in a heap; the pointer still tells
            continue
        box, far = next((place for place in places if _is_free(place[0], lines)), places[0])
        taken.append(box)
        edge = min(max(a, box[0] - 2), box[2] + 1), min(max(b, box[1] + 1), box[3])
        lead = f'<path class="lead" d="M{a:.1f} {b:.1f}L{edge[0]:.1f} {edge[1]:.1f}"/>' if far else ""
        yield f'{lead}<text class="label" x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{escape(spot.label)}</text>' if spot.label else ""


def _along(points: Sequence[Point]) -> Iterator[Box]:
    """Small boxes that cover a line."""
    for (a, b), (c, d) in pairwise(points):
        steps = max(1, int(max(abs(c - a), abs(d - b)) / 5))
        for step in range(steps + 1):
            at = a + (c - a) * step / steps, b + (d - b) * step / steps
            yield at[0] - 2, at[1] - 2, at[0] + 2, at[1] + 2


def _words_box(right: float, baseline: float, label: str) -> Box:
    return right - len(label) * CHARACTER, baseline - 6 - _LINE, right, baseline - 3


def _around(label: str, a: float, b: float, radius: float) -> Iterator[tuple[Box, bool]]:
    """Boxes for a label and whether they are far off, nearest first; right, left, above, below, then aslant."""
    wide = len(label) * CHARACTER
    for distance in _DISTANCES:
        away = radius + distance
        slant = away * 0.75
        for left, top in (
            (a + away, b - _LINE / 2),
            (a - away - wide, b - _LINE / 2),
            (a - wide / 2, b - away - _LINE),
            (a - wide / 2, b + away),
            (a + slant, b - slant - _LINE),
            (a - slant - wide, b - slant - _LINE),
            (a + slant, b + slant),
            (a - slant - wide, b + slant),
        ):
            yield (left, top, left + wide, top + _LINE), distance > _DISTANCES[0]


def _within(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] + 2 and box[2] <= frame[2] and box[1] >= frame[1] and box[3] <= frame[3]


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    return not any(_touch(box, other) for other in taken)


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
