"""Clouds of dots over two logarithmic axes, with a line to hold them against and a band around it, as SVG text.

Every cloud has a colour and a shape of its own, so that it can be told apart without colour; a dot names itself under the
pointer. Colours are classes, as in ``svg``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from colossus.report.grid import CHARACTER, grid
from colossus.report.svg import Point, Scale

_NUM_COLOURS = 8
_LEGEND_WIDTH, _ROW = 236, 19
# Shapes about a dot's centre, of about equal area.
_SHAPES = (
    "m-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z",
    "m-3-3h6v6h-6z",
    "m0-4.2l4.2 4.2l-4.2 4.2l-4.2-4.2z",
    "m-4 3.2l4-7l4 7z",
    "m-4-3.2h8l-4 7z",
)


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One point and what is said of it."""

    x: float
    y: float
    words: str


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Dots of one colour and shape."""

    name: str
    dots: Sequence[Dot]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A logarithmic axis; ``ticks`` as (place, text)."""

    name: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """``line``: from its first to its last point, where x and y agree; ``band``: as factors below and above it.

    ``notes``: lines of text under the legend.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    clouds: Sequence[Cloud]
    line: tuple[Point, Point]
    band: tuple[float, float]
    line_name: str
    notes: Sequence[str] = ()


def draw(scatter: Scatter, *, width: int, height: int, key: str, style: str = "") -> str:
    """The picture as one ``<svg>``; ``key`` makes its ids unique on a page. The legend is right of the plot, or below a narrow one."""
    beside = width >= 640
    left, right = 18 + CHARACTER * max(len(text) for _, text in scatter.y.ticks), width - 14 - (_LEGEND_WIDTH if beside else 0)
    x = Scale(low=scatter.x.low, high=scatter.x.high, start=left, end=right, log=True)
    y = Scale(low=scatter.y.low, high=scatter.y.high, start=height - 40, end=24, log=True)
    entries = _entries(scatter)
    places = list(_places(entries, (right + 22, 34, width) if beside else (left, height + 12, width)))
    whole = max(height, int(places[-1][1]) + 14)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(scatter.title)}</title><desc id="{key}-d">{escape(scatter.description)}</desc>',
        f"<style>{style}</style>" if style else "",
        f'<rect class="paper" width="{width}" height="{whole}"/>' if style else "",
        f'<clipPath id="{key}-c"><rect x="{x.start:.1f}" y="{y.end:.1f}" width="{x.end - x.start:.1f}" height="{y.start - y.end:.1f}"/></clipPath>',
        grid(x, y, (scatter.x.ticks, scatter.y.ticks), (scatter.x.name, scatter.y.name), untold=[at for at, _ in scatter.x.ticks]),
        f'<g clip-path="url(#{key}-c)">{_reference(scatter, x, y)}</g>',
        *(_cloud(cloud, number, x, y) for number, cloud in enumerate(scatter.clouds)),
        *(_entry(sample, words, at) for (sample, words), at in zip(entries, places, strict=True)),
        "</svg>",
    ]
    return "".join(parts)


def _reference(scatter: Scatter, x: Scale, y: Scale) -> str:
    """The line, and the band around it."""
    (low, high), (below, above) = scatter.line, scatter.band
    corners = [(low[0], low[1] * below), (high[0], high[1] * below), (high[0], high[1] * above), (low[0], low[1] * above)]
    band = "L".join(f"{x(a):.1f} {_beyond(y, b):.1f}" for a, b in corners)
    line = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in scatter.line)
    return f'<path class="band" d="M{band}Z"/><path class="reference" d="M{line}"/>'


def _beyond(scale: Scale, value: float) -> float:
    """The pixel of a value that may lie below the axis, where ``Scale`` stops."""
    return scale(value) if value >= scale.low else 2 * scale(scale.low) - scale(scale.low**2 / value)


def _cloud(cloud: Cloud, number: int, x: Scale, y: Scale) -> str:
    dots = "".join(f'<path d="M{x(dot.x):.1f} {y(dot.y):.1f}{_shape(number)}"><title>{escape(dot.words)}</title></path>' for dot in cloud.dots)
    return f'<g class="spot k{number % _NUM_COLOURS}">{dots}</g>'


def _shape(number: int) -> str:
    """Colours and shapes repeat after different counts, so that no pair comes twice among forty clouds."""
    return _SHAPES[number % len(_SHAPES)]


def _entries(scatter: Scatter) -> list[tuple[str, str]]:
    """(sample about the origin, words) of the legend."""
    clouds = [
        (f'<path class="spot k{number % _NUM_COLOURS}" d="M0 0{_shape(number)}"/>', f"{cloud.name} ({len(cloud.dots)})")
        for number, cloud in enumerate(scatter.clouds)
    ]
    line = ('<path class="band" d="M-7-5h14v10h-14z"/><path class="reference" d="M-7 0h14"/>', scatter.line_name)
    return [*clouds, line, *(("", note) for note in scatter.notes)]


def _places(entries: Sequence[tuple[str, str]], box: tuple[float, float, float]) -> Iterator[Point]:
    """Where entries stand from ``box`` (left, top, right end) on: in a row while they have room."""
    left, top, end = box
    at = left
    for _, words in entries:
        wide = 34 + len(words) * CHARACTER
        if at > left and at + wide > end:
            at, top = left, top + _ROW
        yield at + 8, top
        at += wide


def _entry(sample: str, words: str, at: Point) -> str:
    return f'<g transform="translate({at[0]:.1f} {at[1]:.1f})">{sample}<text class="name" x="14" y="4">{escape(words)}</text></g>'
