"""A sweep as pictures and as one self-contained page: a line for one varied value, a heat map for two, the table of all points."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from colossus.report import simulation_sweep as sweeps
from colossus.report import svg
from colossus.report.grid import CHARACTER
from colossus.report.shell import document
from colossus.report.simulation_plots import SHEETS, SIZES, Drawn, Plot
from colossus.report.simulation_sweep import Objective, Point

_CELL, _LINE = 46, 14


def plot(dims: Sequence[str], points: Sequence[Point], objective: Objective) -> Plot | None:
    """None where more than two values vary, or no point has the figure."""
    known = [point for point in points if sweeps.summary(point, objective) is not None]
    if not known or len(dims) > 2:
        return None
    best = sweeps.ranked(points, objective)[0]
    told = "; ".join(f"{sweeps.name_of(dims, point)}: {objective.tell(sweeps.mean(point, objective))}" for point in known)
    if len(dims) == 1:
        remark = f"Each dot: the mean {objective.title} of all replicas by {dims[0]}; whiskers: 9 in 10. The ring is around the best."
        return Plot(
            name="sweep",
            title=f"{objective.title} by {dims[0]}",
            remark=remark,
            description=told,
            draw=lambda width: _line(dims, known, best, objective, width),
        )
    remark = f"Each field: the mean {objective.title} by {dims[0]} (rows) and {dims[1]} (columns); the darker, the better. Framed: the best."
    title = f"{objective.title} by {dims[0]} and {dims[1]}"
    return Plot(name="sweep", title=title, remark=remark, description=told, draw=lambda width: _heat(dims, points, best, objective, width))


def _line(dims: Sequence[str], points: Sequence[Point], best: Point, objective: Objective, width: float) -> Drawn:
    found = [(point, spread) for point in points if (spread := sweeps.summary(point, objective)) is not None]
    low, high = min(spread.low for _, spread in found), max(spread.high for _, spread in found)
    room = (high - low) * 0.08 or abs(high) * 0.01 or 1.0
    ticks = svg.nice_ticks(low - room, high + room, 5)
    left = 14 + CHARACTER * max(len(objective.tell(tick)) for tick in ticks)
    y = svg.Scale(low=low - room, high=high + room, start=224, end=24)
    step = (width - left - 16) / len(found)
    places = [left + step * (number + 0.5) for number in range(len(found))]
    parts = [
        f'<path class="grid" d="M{left:.1f} {y(tick):.1f}H{width - 8}"/><text class="num" x="{left - 7:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{escape(objective.tell(tick))}</text>'
        for tick in ticks
    ]
    parts.append(f'<path class="line s-training" d="M{"L".join(f"{x:.1f} {y(spread.mean):.1f}" for x, (_, spread) in zip(places, found, strict=True))}"/>')
    for x, (point, spread) in zip(places, found, strict=True):
        parts.append(f'<path class="whisker" d="M{x:.1f} {y(spread.low):.1f}V{y(spread.high):.1f}"/>')
        parts.append(
            f'<circle class="pick" cx="{x:.1f}" cy="{y(spread.mean):.1f}" r="4.5"><title>{escape(point.values[0])}: {escape(spread.words(objective.tell))}</title></circle>'
        )
        if point is best:
            parts.append(f'<circle class="whisker" cx="{x:.1f}" cy="{y(spread.mean):.1f}" r="9"/>')
    names = [point.values[0] for point, _ in found]
    parts += _labels(names, places, 242, step)
    low = 242 + _LINE * len(_lines(names, step)) + 4
    parts.append(
        f'<text class="name" x="{width - 8}" y="{low}" text-anchor="end">{escape(dims[0])}</text><text class="name" x="2" y="12">{escape(objective.title)}</text>'
    )
    return low + 8, "".join(parts)


def _lines(names: Sequence[str], step: float) -> range:
    """Of labels: as many as they need to stand beside one another, at most two."""
    return range(1 if CHARACTER * max(map(len, names)) + 8 <= step or len(names) == 1 else 2)


def _labels(names: Sequence[str], places: Sequence[float], y: float, step: float) -> list[str]:
    """Below one another by turns where one line has no room for all; as many as have room then."""
    lines = len(_lines(names, step))
    every = max(1, -(-int(CHARACTER * max(map(len, names)) + 8) // max(1, int(lines * step))))
    shown = list(zip(names, places, strict=True))[::every]
    return [
        f'<text class="num" x="{x:.1f}" y="{y + _LINE * (number % lines)}" text-anchor="middle">{escape(name)}</text>' for number, (name, x) in enumerate(shown)
    ]


def _heat(dims: Sequence[str], points: Sequence[Point], best: Point, objective: Objective, width: float) -> Drawn:
    rows, columns = list(dict.fromkeys(point.values[0] for point in points)), list(dict.fromkeys(point.values[1] for point in points))
    means = [sweeps.mean(point, objective) for point in points if sweeps.summary(point, objective) is not None]
    low, high = min(means), max(means)
    left = 14 + CHARACTER * max(map(len, rows))
    step = (width - left - 8) / len(columns)
    top = 26 + _LINE * len(_lines(columns, step))
    parts = [f'<text class="name" x="2" y="12">{escape(dims[0])}, down; {escape(dims[1])}, across</text>']
    for point in points:
        x, y = left + step * columns.index(point.values[1]), top + _CELL * rows.index(point.values[0])
        parts.append(_field(point, objective, (x, y, step), (low, high), is_best=point is best))
    parts += [
        f'<text class="num" x="{left - 8:.1f}" y="{top + _CELL * (number + 0.5) + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        for number, name in enumerate(rows)
    ]
    parts += _labels(columns, [left + step * (number + 0.5) for number in range(len(columns))], 34, step)
    return top + _CELL * len(rows) + 10, "".join(parts)


def _field(point: Point, objective: Objective, box: tuple[float, float, float], ends: tuple[float, float], *, is_best: bool) -> str:
    x, y, step = box
    found = sweeps.summary(point, objective)
    mean = sweeps.mean(point, objective)
    told = "never" if found is None else objective.tell(mean)
    share = 0.0 if found is None else (mean - ends[0]) / ((ends[1] - ends[0]) or 1.0)
    good = share if objective.more_is_better or found is None else 1 - share
    frame = f'<rect class="whisker" x="{x + 2:.1f}" y="{y + 2:.1f}" width="{step - 4:.1f}" height="{_CELL - 4}"/>' if is_best else ""
    text = (
        f'<text class="label" x="{x + step / 2:.1f}" y="{y + _CELL / 2 + 4:.1f}" text-anchor="middle">{escape(told)}</text>'
        if len(told) * CHARACTER < step
        else ""
    )
    return (
        f'<rect class="bar-a" fill-opacity="{0.04 + 0.5 * good:.2f}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{step - 2:.1f}" height="{_CELL - 2}">'
        f"<title>{escape(', '.join(point.values))}: {escape(told)}</title></rect>{frame}{text}"
    )


def page(title: str, terms: str, dims: Sequence[str], points: Sequence[Point], objective: Objective) -> str:
    """The whole page."""
    drawn = plot(dims, points, objective)
    told = {each.point: each for each in sweeps.standings(points, objective)}
    rows = [sweeps.cells(point, points, objective, told.get(point)) for point in sweeps.ranked(points, objective)]
    pictured = (
        ""
        if drawn is None
        else _section(
            drawn.title, "".join(f'<div class="{size}">{drawn.inline(size)}</div>' for size in SIZES) + f'<p class="soft told">{escape(drawn.remark)}</p>'
        )
    )
    note = (
        "Every point meets the same seeds, so that differences are due to what was varied as far as the rules allow. "
        "Against the best: the mean difference over replicas, paired by seed; it may be chance where Student's t at 5 %, shared over all comparisons, cannot tell."
    )
    head = (
        f'<header><div class="head"><h1>{escape(title)}</h1><span class="pill done">simulated</span></div>'
        f'<p class="verdict">{escape(sweeps.verdict(dims, points, objective))}</p><p class="when">{escape(terms)}</p></header>'
    )
    table = _section("All points, best first", _table(sweeps.header(dims, points, objective), rows))
    return document(f"{title}: sweep", (*SHEETS, "page.css"), [head, pictured, table, f"<footer>{escape(note)}</footer>"])


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title[0].upper() + title[1:])}</h2>{body}</section>"


def _breakable(name: str) -> str:
    """May be broken behind its points, where a label of a narrow screen has no room for it."""
    return name.replace(".", ".\u200b")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f'<td data-name="{escape(_breakable(name))}">{escape(cell)}</td>' for name, cell in zip(header, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
