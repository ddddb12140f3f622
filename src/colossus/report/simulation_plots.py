"""The pictures of a simulation: useful work and losses over time, power of the site, nodes by state, causes, money, and spreads over replicas.

Each is drawn for a width, so that a page has it for wide and for narrow screens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from colossus.report import svg
from colossus.report.grid import CHARACTER, grid
from colossus.report.picture import WIDTH, Picture
from colossus.report.plan_words import money
from colossus.report.simulation_words import (
    STATES,
    cause_name,
    cause_rows,
    every_s,
    money_rows,
    num_interruptions,
    of_first,
    of_replicas,
    quantile,
    rate_words,
    spread,
    time_total,
)
from colossus.report.words import count, duration, percent
from colossus.spec.causes import LABELS, Cause
from colossus.spec.simulation import Course, NodeState, Simulation, Tally
from colossus.spec.units import format_quantity

SHEETS = ("page.svg.css", "page.plan.css", "page.causes.css")
SIZES = {"wide": WIDTH, "narrow": 400}
_ROW, _BAR = 26, 18
_MOST_BARS = 14
_WORTH_MAGNIFYING = 0.4  # a picture whose losses reach higher shows them well enough
_COLUMN = 4  # pixels of a piece of time
Drawn = tuple[float, str]  # height, SVG elements
Row = tuple[str, float, str, str]  # name, value, words behind the bar, css


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture for any width, with one line for a reader who sees its like for the first time."""

    name: str
    title: str
    remark: str
    description: str
    draw: Callable[[float], Drawn]

    def inline(self, size: str) -> str:
        """For a page that carries the rules of ``SHEETS``."""
        width, key = SIZES[size], f"{self.name}-{size}"
        height, body = self.draw(width)
        return (
            f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{escape(self.title)}</title>'
            f'<desc id="{key}-d">{escape(self.description)}</desc>{body}</svg>'
        )

    def picture(self) -> Picture:
        height, body = self.draw(WIDTH)
        return Picture(name=self.name, title=self.title, description=self.description, height=height, body=body, sheets=SHEETS)


def plots(simulation: Simulation) -> list[Plot]:
    """All that there is data for."""
    found = [timeline(simulation)]
    found += [losses(simulation)] if 0 < _most_lost(simulation.course, WIDTH) < _WORTH_MAGNIFYING else []
    found += [causes(simulation)] if any(row.number for row in cause_rows(simulation)) and num_interruptions(simulation) else []
    found += [power(simulation)] if any(simulation.course.site_w) else []
    found += [nodes(simulation)] if simulation.course.nodes else []
    found += [classes(simulation)] if money_rows(simulation) else []
    return found + (spreads(simulation) if len(simulation.tallies) > 1 else [])


def timeline(simulation: Simulation) -> Plot:
    """Shares of every moment, useful work at the bottom."""
    legend = _most_lost(simulation.course, WIDTH) >= _WORTH_MAGNIFYING
    return Plot(
        name="timeline",
        title=f"Useful work and losses over time{of_first(simulation)}",
        remark="Every column is a piece of the simulated time, cut by what the job did in it. Green is work that counts; everything above it is a loss.",
        description="; ".join(f"{LABELS[cause]} {percent(sum(shares) / len(shares))}" for cause, shares in simulation.course.shares.items() if any(shares)),
        draw=lambda width: _stack(simulation.course, [Cause.PRODUCTIVE, *_lost(simulation.course)], 1.0, width, legend=legend),
    )


def losses(simulation: Simulation) -> Plot:
    """The same without useful work, magnified."""
    top = _most_lost(simulation.course, WIDTH)
    return Plot(
        name="losses",
        title=f"The losses alone{of_first(simulation)}",
        remark=f"The top of the picture above, magnified: its axis ends at {percent(top)} of the time.",
        description="Losses of each piece of time, stacked.",
        draw=lambda width: _stack(simulation.course, _lost(simulation.course), _most_lost(simulation.course, width), width, legend=True),
    )


def _lost(course: Course) -> list[Cause]:
    return [cause for cause, shares in course.shares.items() if cause is not Cause.PRODUCTIVE and any(shares)]


def _most_lost(course: Course, width: float) -> float:
    """The largest loss of a bin as it is drawn, up to the next round share."""
    sums = [sum(values) for values in zip(*(_bins(course.shares[cause], width) for cause in _lost(course)), strict=True)]
    most = max(sums, default=0.0)
    return 0.0 if most == 0 else next((top for top in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5) if most <= top), 1.0)


def _bins(values: Sequence[float], width: float) -> list[float]:
    """Means of neighbours, so that one column is about four pixels wide."""
    number = max(1, min(len(values), int(width / _COLUMN)))
    edges = [len(values) * index // number for index in range(number + 1)]
    return [sum(values[low:high]) / (high - low) for low, high in pairwise(edges)]


def _stack(course: Course, shown: Sequence[Cause], top: float, width: float, *, legend: bool = False) -> Drawn:
    shown = [cause for cause in shown if cause in course.shares]
    names = [(LABELS[cause], f"c-{cause.value}") for cause in shown] if legend else []
    text, below = _legend(names, width)
    height, left = 200.0, 44.0
    rows = [(LABELS[cause], f"stack c-{cause.value}", [share / top for share in _bins(course.shares[cause], width)]) for cause in shown]
    x, y = _time_scale(course, left, width), svg.Scale(low=0.0, high=top, start=24 + height, end=24)
    stack = f'<g transform="translate({left} 24)">{svg.stacked(rows, width=x.end - x.start, height=height)}</g>'
    ticks = [(at, percent(at)) for at in svg.nice_ticks(0, top, 4)]
    lines = grid(x, y, (_time_ticks(x), ticks), ("time since the job began", "share of the time"))
    return 24 + height + 42 + below, lines + stack + f'<g transform="translate(0 {24 + height + 50})">{text}</g>'


def _time_scale(course: Course, left: float, width: float) -> svg.Scale:
    num_bins = max(len(course.steps_per_s), 1)
    return svg.Scale(low=0.0, high=course.bin_s * num_bins, start=left, end=width - 8)


def _time_ticks(x: svg.Scale) -> list[tuple[float, str]]:
    return [(at, duration(at)) for at in svg.time_ticks(x.high, max(3, int((x.end - x.start) / 90)))]


def _legend(names: Sequence[tuple[str, str]], width: float) -> tuple[str, float]:
    """Squares with names, in rows."""
    parts, at, line = [], 0.0, 0
    for name, css in names:
        wide = 26 + len(name) * CHARACTER
        if at and at + wide > width:
            at, line = 0.0, line + 1
        parts.append(
            f'<rect class="{css}" x="{at:.0f}" y="{line * 20}" width="11" height="11" rx="2"/><text class="name" x="{at + 16:.0f}" y="{line * 20 + 10}">{escape(name)}</text>'
        )
        at += wide
    return "".join(parts), (line + 1) * 20 if names else 0


def causes(simulation: Simulation) -> Plot:
    """Bars of interruptions by cause."""
    met = [row for row in cause_rows(simulation) if row.is_met]
    rows = [row for row in met if row.number][:_MOST_BARS]
    more = len(met) - len(rows)
    told = [(cause_name(row.cause), float(row.number), f"{row.number:,}, {percent(row.fraction)}", "bar-a") for row in rows]
    tail = f" {count(more, 'rarer cause')} not drawn." if more > 0 else ""
    return Plot(
        name="causes",
        title=f"What interrupted the job{of_replicas(simulation)}",
        remark=f"How often the job was stopped, by cause: {count(num_interruptions(simulation), 'time')}, one every {duration(every_s(simulation))} or {rate_words(simulation)}.{tail}",
        description="; ".join(f"{name} {words}" for name, _, words, _ in told),
        draw=lambda width: _bars(told, width),
    )


def classes(simulation: Simulation) -> Plot:
    """Bars of money by class."""
    told = [(name, usd, f"{money(usd)}, {percent(fraction)}", "bar-a") for name, usd, fraction, _ in money_rows(simulation)]
    return Plot(
        name="money",
        title=f"What it costs{of_replicas(simulation)}",
        remark=f"What the machine costs over the {duration(time_total(simulation)[0])} simulated, whether it works or stands: purchases spread over their life, and energy as drawn.",
        description="; ".join(f"{name} {words}" for name, _, words, _ in told),
        draw=lambda width: _bars(told, width),
    )


def _bars(rows: Sequence[Row], width: float) -> Drawn:
    """Names left, bars from one line; on narrow screens names above their bars."""
    narrow = width < 600
    left = 0.0 if narrow else 14 + CHARACTER * max(len(name) for name, *_ in rows)
    room = CHARACTER * max(len(words) for _, _, words, _ in rows) + 14
    scale = svg.Scale(low=0.0, high=max(value for _, value, _, _ in rows), start=left, end=width - room)
    step = _ROW + 16 if narrow else _ROW
    parts = []
    for number, (name, value, words, css) in enumerate(rows):
        y = number * step + (16 if narrow else 0)
        wide = max(1.0, scale(value) - left)
        parts.append(f'<text class="name" x="0" y="{y - 1 if narrow else y + 17}">{escape(name)}</text>')
        parts.append(f'<rect class="{css}" x="{left:.1f}" y="{y + 4}" width="{wide:.1f}" height="{_BAR}" rx="2"/>')
        parts.append(f'<text class="num" x="{left + wide + 8:.1f}" y="{y + 17}">{escape(words)}</text>')
    return len(rows) * step + 4.0, "".join(parts)


def power(simulation: Simulation) -> Plot:
    """What the site draws over time, against its limit."""
    bill, limit = simulation.first.bill, simulation.scenario.power.limit_w
    told = "What the whole site draws from the grid, cooling and losses included; each point is the mean of a piece of time"
    told += f", on average {format_quantity(bill.mean_w, 'W')}, at most {format_quantity(bill.peak_w, 'W')}." if bill else "."
    told += " Dashed: what the site may draw." if limit else ""
    return Plot(
        name="power",
        title=f"Power of the site{of_first(simulation)}",
        remark=told,
        description=told,
        draw=lambda width: _area(simulation.course, simulation.course.site_w, "W", width, css="s-training", limit=limit),
    )


def _area(course: Course, values: Sequence[float], unit: str, width: float, *, css: str, limit: float | None = None, height: float = 190.0) -> Drawn:
    """A line over time from zero, filled."""
    number = max(1, int(width / _COLUMN))
    step = course.bin_s * len(values) / max(1, min(number, len(values)))
    points = [((index + 0.5) * step, value) for index, value in enumerate(_bins(values, width))]
    high = max([value for _, value in points] + ([limit] if limit else [])) * 1.05 or 1.0
    tell = lambda value: format_quantity(value, unit) if value else "0"
    ticks = [(at, tell(at)) for at in svg.nice_ticks(0.0, high, 4)]
    left = 12 + CHARACTER * max(len(text) for _, text in ticks)
    x, y = _time_scale(course, left, width), svg.Scale(low=0.0, high=high, start=24 + height, end=24)
    path = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)
    fill = f'<path class="area {css}" d="{path}V{y.start:.1f}H{x(points[0][0]):.1f}Z"/><path class="line {css}" d="{path}"/>'
    line = f'<path class="limit" d="M{x.start:.1f} {y(limit):.1f}H{x.end:.1f}"/>' if limit else ""
    return 24 + height + 42, grid(x, y, (_time_ticks(x), ticks), ("time since the job began", "power")) + fill + line


def nodes(simulation: Simulation) -> Plot:
    """One strip for every state that occurs, each from its own zero."""
    course = simulation.course
    shown = [(state, course.nodes[state]) for state in NodeState if any(course.nodes.get(state, ()))]
    return Plot(
        name="nodes",
        title=f"What the nodes do{of_first(simulation)}",
        remark=f"All {simulation.num_nodes:,} nodes (servers) of the machine by state. Each strip has its own axis, from zero to its largest number.",
        description="; ".join(f"{STATES[state][0]} {sum(values) / len(values):,.0f} on average" for state, values in shown),
        draw=lambda width: _strips(course, shown, width),
    )


def _strips(course: Course, shown: Sequence[tuple[NodeState, Sequence[float]]], width: float) -> Drawn:
    """Small charts over one axis of time."""
    strip, gap, left = 58.0, 30.0, 60.0
    x = _time_scale(course, left, width)
    parts = []
    for number, (state, values) in enumerate(shown):
        top = number * (strip + gap) + 22
        rows = _bins(values, width)
        high = max(rows) or 1.0
        mean = sum(values) / len(values)
        label = f"{STATES[state][0]}: {mean:,.0f} on average"
        stack = svg.stacked([(STATES[state][0], f"stack n-{state.value}", [value / high for value in rows])], width=x.end - left, height=strip)
        parts.append(
            f'<text class="label" x="{left}" y="{top - 6}">{escape(label)}</text><text class="num" x="{left - 7}" y="{top + 9}" text-anchor="end">{high:,.0f}</text>'
            f'<text class="num" x="{left - 7}" y="{top + strip}" text-anchor="end">0</text><g transform="translate({left} {top})">{stack}</g>'
            f'<path class="axis" d="M{left} {top + strip}H{x.end:.1f}"/>'
        )
    bottom = len(shown) * (strip + gap) - 8
    parts += [f'<text class="num" x="{x(at):.1f}" y="{bottom + 17}" text-anchor="{_anchor(x(at), x)}">{text}</text>' for at, text in _time_ticks(x)]
    parts.append(f'<text class="name" x="{x.end:.1f}" y="{bottom + 34}" text-anchor="end">time since the job began</text>')
    return bottom + 42, "".join(parts)


def _anchor(pixel: float, x: svg.Scale) -> str:
    return "start" if pixel < x.start + 12 else "end" if pixel > x.end - 20 else "middle"


# name -> title, figure of a replica, how a value is said, what is counted.
_SPREADS: dict[str, tuple[str, Callable[[Tally], float | None], Callable[[float], str], str]] = {
    "goodput": ("Goodput over replicas", lambda one: one.goodput_fraction, percent, "share of the time that was useful work"),
    "time-to-train": ("Time to train over replicas", lambda one: one.time_to_train_s, duration, "time until the training is done"),
    "interruptions": ("Interruptions over replicas", lambda one: float(one.num_interruptions), lambda value: f"{value:,.0f}", "times that the job stood still"),
}


def spreads(simulation: Simulation) -> list[Plot]:
    """Histograms of what chance alone makes of the same machine, job and rules."""
    found = []
    for name, (title, figure, tell, counted) in _SPREADS.items():
        values = [value for one in simulation.tallies if (value := figure(one)) is not None]
        if len(values) > 1 and max(values) > min(values):
            found.append(_spread(name, title, values, tell, counted))
    return found


def _spread(name: str, title: str, values: Sequence[float], tell: Callable[[float], str], counted: str) -> Plot:
    ends = spread(values)
    told = (
        f"How many of {len(values):,} replicas, alike but for chance, came to which {counted}. Line: the median, {tell(ends.median)}; "
        f"shaded: 9 in 10, from {tell(ends.low)} to {tell(ends.high)}."
    )
    return Plot(name=name, title=title, remark=told, description=told, draw=lambda width: _histogram(values, tell, counted, width))


def _histogram(values: Sequence[float], tell: Callable[[float], str], counted: str, width: float) -> Drawn:
    low, high = min(values), max(values)
    number = max(4, min(30, round(len(values) ** 0.5 * 1.5)))
    step = (high - low) / number
    counts = [0] * number
    for value in values:
        counts[min(number - 1, int((value - low) / step))] += 1
    height = 150.0
    half = CHARACTER * max(len(tell(low)), len(tell(high))) / 2
    x = svg.Scale(low=low, high=high, start=max(40.0, half), end=width - half)
    y = svg.Scale(low=0.0, high=float(max(counts)), start=24 + height, end=24)
    ticks = [(at, f"{at:,.0f}") for at in svg.nice_ticks(0, max(counts), 3) if float(at).is_integer()]
    between = [low + (high - low) * index / 4 for index in range(5)]
    lines = grid(x, y, ([(at, tell(at)) for at in between], ticks), (counted, "replicas"))
    pixel = (x.end - x.start) / number
    bars = "".join(
        f'<rect class="bar-a" x="{x.start + index * pixel:.1f}" y="{y(times):.1f}" width="{max(1.0, pixel - 1.5):.1f}" height="{y.start - y(times):.1f}"/>'
        for index, times in enumerate(counts)
        if times
    )
    first, middle, last = (x(quantile(values, fraction)) for fraction in (0.05, 0.5, 0.95))
    band = f'<rect class="band" x="{first:.1f}" y="{y.end}" width="{last - first:.1f}" height="{height}"/>'
    return 24 + height + 42, f'{lines}{band}{bars}<path class="middle" d="M{middle:.1f} {y.start}V{y.end - 4}"/>'
