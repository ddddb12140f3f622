"""A small plotting core: nice ticks, bounded points, line and area charts as SVG text.

Colours are classes, so that the page (or ``STYLE``, for a picture on its own) decides them for light and dark.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

Point = tuple[float, float]

MAX_POINTS = 1200
_LABEL_GAP = 8
_CHARACTER = 6.2


def nice_ticks(low: float, high: float, num_ticks: int = 6) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) within [low, high], about ``num_ticks`` of them."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    raw = span / max(1, num_ticks)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def time_ticks(high_s: float, num_ticks: int = 6) -> list[float]:
    """Ticks from 0 that are round on a clock: 15 s, 5 min, 2 h, 7 d."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000)
    step = next((step for step in steps if high_s / step <= num_ticks), None)
    if high_s <= 2 or step is None:
        return nice_ticks(0, high_s, num_ticks)
    return [float(step * index) for index in range(int(high_s // step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]; powers alone when there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 1e4 else (1,)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def downsample(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most ``limit`` points that keep the first, the last and every bucket's lowest and highest: spikes stay."""
    if len(points) <= limit:
        return list(points)
    buckets = max(1, (limit - 2) // 2)
    inner = points[1:-1]
    kept = [points[0]]
    for index in range(buckets):
        bucket = inner[len(inner) * index // buckets : len(inner) * (index + 1) // buckets]
        if bucket:
            extremes = (min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1]))
            kept += sorted(set(extremes))
    return [*kept, points[-1]]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps values to pixels, straight or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        place = math.log10(max(value, self.low)) if self.log else value
        return self.start + (place - low) / ((high - low) or 1) * (self.end - self.start)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, of points already downsampled; ``css`` names its colour; ``area`` fills down to the axis, ``dots`` marks every point."""

    name: str
    points: Sequence[Point]
    css: str
    area: bool = False
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over one x axis, with labelled vertical marks and small ticks on the axis.

    Where the labels of the marks have no room beside each other, the marks are numbered instead.
    """

    title: str
    description: str
    series: Sequence[Series]
    x_name: str
    y_name: str
    marks: Sequence[tuple[float, str]] = ()
    ticks: Sequence[float] = ()
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = False
    x_range: tuple[float, float] | None = None
    x_ticks: Callable[[float, float, int], list[float]] = nice_ticks
    format_x: Callable[[float], str] = field(default=lambda value: f"{value:g}")
    format_y: Callable[[float], str] = field(default=lambda value: f"{value:g}")


def draw(chart: Chart, *, width: int, height: int, key: str, style: str = "") -> str:
    """The chart as one ``<svg>``; ``key`` makes its ids unique on a page."""
    x, y, y_ticks = _scales(chart, width, height)
    parts = [
        _open(chart, width, height, key, (x, y)),
        f"<style>{style}</style>" if style else "",
        f'<rect class="paper" width="{width}" height="{height}"/>' if style else "",
        _grid(chart, x, y, y_ticks),
        *(_mark(x(at), label, y, x) for at, label in _spaced(chart.marks, x)),
        _ticks(chart.ticks, x, y),
        *(_line(series, x, y) for series in chart.series),
        _legend(chart.series, x.start),
        "</svg>",
    ]
    return "".join(parts)


def _scales(chart: Chart, width: int, height: int) -> tuple[Scale, Scale, list[float]]:
    xs = [point[0] for series in chart.series for point in series.points]
    ys = [point[1] for series in chart.series for point in series.points]
    x_low, x_high = chart.x_range or _padded(min(xs, default=0.0), max(xs, default=1.0), 0.0)
    log = chart.log_y and min(ys, default=0) > 0
    y_low, y_high = (min(ys) / 1.1, max(ys) * 1.1) if log else _padded(min(ys, default=0.0), max(ys, default=1.0), 0.05)
    y_low = 0.0 if chart.from_zero else y_low
    y_ticks = log_ticks(y_low, y_high) if log else nice_ticks(y_low, y_high, 5)
    margin = 14 + _CHARACTER * max((len(chart.format_y(tick)) for tick in y_ticks), default=1)
    top = 46 if chart.marks else 30
    x = Scale(low=x_low, high=x_high, start=margin, end=width - 14, log=chart.log_x and x_low > 0)
    return x, Scale(low=y_low, high=y_high, start=height - 38, end=top, log=log), y_ticks


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    span = (high - low) or abs(high) or 1.0
    return (low - span * share, high + span * share) if high > low else (low - span / 2, high + span / 2)


def _open(chart: Chart, width: int, height: int, key: str, scales: tuple[Scale, Scale]) -> str:
    x, y = scales
    data = {
        "x": [x.low, x.high, round(x.start, 1), round(x.end, 1)],
        "y": [round(y.end, 1), round(y.start, 1)],
        "series": [{"name": series.name, "points": [[short(a), short(b)] for a, b in series.points]} for series in chart.series],
        "x_name": chart.x_name,
    } | ({"log_x": True} if x.log else {})
    values = escape(json.dumps(data, separators=(",", ":")))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{key}-t {key}-d" data-chart="{values}">'
        f'<title id="{key}-t">{escape(chart.title)}</title><desc id="{key}-d">{escape(chart.description)}</desc>'
    )


def short(value: float) -> float | int:
    """Six digits are enough for a picture."""
    value = float(f"{value:.6g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def _grid(chart: Chart, x: Scale, y: Scale, y_ticks: list[float]) -> str:
    rows = [f'<path class="grid" d="M{x.start:.1f} {y(tick):.1f}H{x.end:.1f}"/>' for tick in y_ticks]
    rows += [f'<text class="num" x="{x.start - 6:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{escape(chart.format_y(tick))}</text>' for tick in y_ticks]
    num_ticks = max(4, int((x.end - x.start) / 95))
    for tick in chart.x_ticks(x.low, x.high, num_ticks):
        anchor = "end" if x(tick) > x.end - 14 else "middle"
        rows.append(f'<text class="num" x="{x(tick):.1f}" y="{y.start + 17:.1f}" text-anchor="{anchor}">{escape(chart.format_x(tick))}</text>')
    rows.append(f'<path class="axis" d="M{x.start:.1f} {y.start:.1f}H{x.end:.1f}"/>')
    rows.append(f'<text class="name" x="{x.end:.1f}" y="{y.start + 33:.1f}" text-anchor="end">{escape(chart.x_name)}</text>')
    rows.append(f'<text class="name" x="2" y="12">{escape(chart.y_name)}</text>')
    return "".join(rows)


def _ticks(values: Sequence[float], x: Scale, y: Scale) -> str:
    """Small ticks on the axis, left out where they would touch."""
    pixels: list[float] = []
    for value in sorted(values):
        if x.low <= value <= x.high and (not pixels or x(value) - pixels[-1] >= 3):
            pixels.append(x(value))
    return f'<path class="tick" d="{"".join(f"M{pixel:.1f} {y.start:.1f}v-6" for pixel in pixels)}"/>' if pixels else ""


def _line(series: Series, x: Scale, y: Scale) -> str:
    points = [(x(a), y(b)) for a, b in series.points]
    if not points:
        return ""
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    fill = f'<path class="area {series.css}" d="{path}V{y.start:.1f}H{points[0][0]:.1f}Z"/>' if series.area else ""
    dots = "".join(f'<circle class="dot {series.css}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points) if series.dots and len(points) <= 30 else ""
    return f'{fill}<path class="line {series.css}" d="{path}"/>{dots}'


def _spaced(marks: Sequence[tuple[float, str]], x: Scale) -> list[tuple[float, str]]:
    """Marks on the axis with their labels, or with their numbers when a label has no room."""
    placed = _placed(marks, x)
    if all(label for _, label in placed):
        return placed
    return _placed([(at, str(number)) for number, (at, _) in enumerate(marks, 1)], x)


def _placed(marks: Sequence[tuple[float, str]], x: Scale) -> list[tuple[float, str]]:
    """One mark a pixel at most; a label only where it has room beside the one before."""
    placed: list[tuple[float, str]] = []
    free_from, last = -math.inf, -math.inf
    for at, label in sorted(marks):
        pixel = x(at)
        if not x.low <= at <= x.high or pixel - last < 1:
            continue
        begin, end = _label_box(pixel, label, x)
        shown = begin >= free_from
        placed.append((at, label if shown else ""))
        free_from, last = (end + _LABEL_GAP if shown else free_from), pixel
    return placed


def _label_box(pixel: float, label: str, x: Scale) -> tuple[float, float]:
    wide = len(label) * _CHARACTER
    begin = min(max(pixel - wide / 2, x.start), max(x.start, x.end - wide))
    return begin, begin + wide


def _mark(pixel: float, label: str, y: Scale, x: Scale) -> str:
    line = f'<path class="mark" d="M{pixel:.1f} {y.end - 6:.1f}V{y.start:.1f}"/>'
    if not label:
        return line
    begin, end = _label_box(pixel, label, x)
    return f'{line}<text class="marked" x="{(begin + end) / 2:.1f}" y="{y.end - 12:.1f}" text-anchor="middle">{escape(label)}</text>'


def _legend(series: Sequence[Series], start: float) -> str:
    """Names beside samples of their lines, right of the y axis' name; none for a single series."""
    if len(series) < 2:
        return ""
    rows, at = [], start + 110
    for one in series:
        rows.append(f'<path class="line {one.css}" d="M{at:.0f} 8h18"/><text class="name" x="{at + 24:.0f}" y="12">{escape(one.name)}</text>')
        at += 40 + len(one.name) * _CHARACTER
    return "".join(rows)


def stacked(rows: Sequence[tuple[str, str, Sequence[float]]], *, width: float, height: float) -> str:
    """Bins side by side, each a stack from the bottom: one ``<path>`` for every (name, css, share of each bin)."""
    num_bins = len(rows[0][2]) if rows else 0
    floor = [0.0] * num_bins
    step = width / num_bins if num_bins else 0.0
    paths = []
    for name, css, shares in rows:
        boxes = [(floor[index], floor[index] + share) for index, share in enumerate(shares)]
        floor = [top for _, top in boxes]
        paths.append(f'<path class="{css}" d="{_boxes(boxes, step, height)}"><title>{escape(name)}</title></path>')
    return "".join(paths)


def _boxes(boxes: list[tuple[float, float]], step: float, height: float) -> str:
    """Neighbouring boxes of one height are drawn as one."""
    edges = [0, *(index for index, (a, b) in enumerate(pairwise(boxes), 1) if a != b), len(boxes)]
    drawn = []
    for first, last in pairwise(edges):
        low, high = boxes[first]
        if high - low > 1e-4:
            drawn.append(f"M{first * step:.2f} {(1 - high) * height:.2f}h{(last - first) * step:.2f}v{(high - low) * height:.2f}H{first * step:.2f}Z")
    return "".join(drawn)
