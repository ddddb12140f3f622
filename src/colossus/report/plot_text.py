"""A line plot in characters: two braille columns by four rows of dots in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLOCKS = "▁▂▃▄▅▆▇█"

Point = tuple[float, float]


def sparkline(values: Sequence[float], width: int) -> str:
    """The values in one line of blocks, averaged down to ``width``; a flat line sits at the bottom."""
    means = _bucket_means(values, width)
    low, high = min(means, default=0.0), max(means, default=0.0)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[min(7, int((value - low) / span * 8))] for value in means)


def line_plot(points: Sequence[Point], *, width: int, height: int, marks: Sequence[float] = ()) -> list[str]:
    """Rows of text, top first: a y axis with its extremes, the line, ``marks`` as a row of x at those abscissas.

    ``width`` counts every character. No rows for fewer than two points.
    """
    if len(points) < 2:
        return []
    (x_low, x_high), (y_low, y_high) = _range(points, 0), _range(points, 1)
    labels = [f"{y_high:.4g}", f"{y_low:.4g}"]
    margin = max(map(len, labels))
    columns = max(4, width - margin - 2)
    cells = _draw(points, columns, height, (x_low, x_high, y_low, y_high))
    rows = []
    for number, row in enumerate(cells):
        label = labels[0] if number == 0 else labels[1] if number == height - 1 else ""
        rows.append(f"{label:>{margin}} │{''.join(chr(0x2800 + dots) for dots in row)}")
    rows.append(" " * margin + " └" + _mark_row([(mark - x_low) / (x_high - x_low) for mark in marks], columns))
    first, last = f"{x_low:g}", f"{x_high:g}"
    rows.append(" " * (margin + 2) + first + last.rjust(columns - len(first)))
    return rows


def _draw(points: Sequence[Point], columns: int, height: int, box: tuple[float, float, float, float]) -> list[list[int]]:
    x_low, x_high, y_low, y_high = box
    cells = [[0] * columns for _ in range(height)]
    wide, tall = 2 * columns - 1, 4 * height - 1
    dots = [(round((x - x_low) / (x_high - x_low) * wide), round((y_high - y) / (y_high - y_low) * tall)) for x, y in points]
    for (x0, y0), (x1, y1) in pairwise(dots):
        length = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(length + 1):
            x, y = x0 + round((x1 - x0) * i / length), y0 + round((y1 - y0) * i / length)
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return cells


def _mark_row(fractions: Sequence[float], columns: int) -> str:
    row = ["─"] * columns
    for fraction in fractions:
        if 0 <= fraction <= 1:
            row[min(columns - 1, int(fraction * columns))] = "x"
    return "".join(row)


def _range(points: Sequence[Point], index: int) -> tuple[float, float]:
    values = [point[index] for point in points]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _bucket_means(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [len(values) * i // width for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
