"""The pictures of a plan: where a step goes, memory, what to buy next, how it scales, and the choices of time, chips and money."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from colossus.report import roofline as roofs
from colossus.report import svg
from colossus.report.labelled import Labelled, Line, Spot, draw
from colossus.report.picture import WIDTH, Picture
from colossus.report.plan_words import count, memory_name, money, part_name, short_count, size
from colossus.report.roofline import Roofline
from colossus.spec.answer import Answer, Choice
from colossus.spec.units import format_duration, format_quantity

Swing = tuple[str, float | None, float | None]  # figure, best step with it lowered, and raised
_ROW, _NAMES, _BAR = 26, 300, 18
_DAY_S = 86400
_LEAST = 0.0005  # of a step or of memory: less is not drawn


def pictures(
    answer: Answer, *, tornado: Sequence[Swing] = (), scaling: Sequence[Choice] = (), front: Sequence[Choice] = (), roofline: Roofline | None = None
) -> list[Picture]:
    """All that there is data for."""
    found = [waterfall(answer.best), memory(answer)]
    if roofline is not None:
        found.append(roofs.picture(roofline, chip=answer.chip or "chip"))
    if tornado:
        found.append(tornado_chart(answer.best.step_s, tornado))
    if len(scaling) > 1:
        found.append(scaling_curve(scaling))
    if len(front) > 1:
        found.append(front_chart(front))
    return found


def waterfall(choice: Choice) -> Picture:
    """Parts of a step one after the other, from left to right, as they add up to the whole."""
    parts = [(name, seconds) for name, seconds in choice.parts_s.items() if seconds > _LEAST * choice.step_s]
    scale = svg.Scale(low=0.0, high=max(choice.step_s, choice.upper_step_s), start=_NAMES, end=WIDTH - 110)
    rows, at = [], 0.0
    for number, (name, seconds) in enumerate(parts):
        words = f"{format_quantity(seconds, 's')}  {seconds / choice.step_s:.1%}"
        rows.append(_row(part_name(name), number * _ROW, (scale(at), scale(at + seconds)), words, "bar-a"))
        at += seconds
    y = len(parts) * _ROW
    rows.append(_row("the whole step", y, (scale(0), scale(choice.step_s)), "", "bar-whole"))
    middle, low, high = y + _ROW / 2, scale(choice.lower_step_s), scale(choice.upper_step_s)
    whisker = f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"/>'
    told = f"{format_quantity(choice.step_s, 's')}; nine runs in ten between {format_quantity(choice.lower_step_s, 's')} and {format_quantity(choice.upper_step_s, 's')}"
    rows.append(f'{whisker}<text class="num" x="{_NAMES}" y="{y + _ROW + 16}">{told}</text>')
    return Picture(
        name="waterfall",
        title="Where a step goes",
        description=", ".join(f"{part_name(name)} {seconds / choice.step_s:.1%}" for name, seconds in parts),
        height=y + 2 * _ROW,
        body="".join(rows),
    )


def memory(answer: Answer) -> Picture:
    """What fills the fullest chip, largest first, and how much it has."""
    choice, room = answer.best, answer.chip_memory_bytes
    parts = sorted(((name, value) for name, value in choice.memory_parts_bytes.items() if value > 0), key=lambda item: -item[1])
    scale = svg.Scale(low=0.0, high=max(choice.memory_bytes_per_chip, room or 0.0), start=_NAMES, end=WIDTH - 110)
    rows, at = [], 0.0
    for number, (name, value) in enumerate(parts):
        rows.append(_row(memory_name(name), number * _ROW, (scale(at), scale(at + value)), size(value), "bar-a", limit=scale(room) if room else WIDTH))
        at += value
    y = len(parts) * _ROW
    rows.append(_row("together", y, (scale(0), scale(choice.memory_bytes_per_chip)), "", "bar-whole"))
    whole = f"{size(choice.memory_bytes_per_chip)} of the {size(room)} that a chip has" if room else size(choice.memory_bytes_per_chip)
    rows.append(f'<text class="num" x="{_NAMES}" y="{y + _ROW + 16}">{whole}</text>')
    if room:
        rows.append(f'<path class="room" d="M{scale(room):.1f} 0V{y + _ROW}"/>')
    told = "; ".join(f"{memory_name(name)} {size(value)}" for name, value in parts)
    return Picture(name="memory", title="Memory of the fullest chip", description=f"{told}; {whole}", height=y + 2 * _ROW, body="".join(rows))


def tornado_chart(base_s: float, swings: Sequence[Swing]) -> Picture:
    """For each figure the best step time with it lowered and raised, around the plan's; shorter is left."""
    known = [value for _, low, high in swings for value in (low, high) if value is not None]
    span = max((abs(value - base_s) for value in known), default=0.0) or base_s * 0.01
    scale = svg.Scale(low=base_s - span, high=base_s + span, start=_NAMES - 90, end=WIDTH - 200)
    top = 2 * _ROW
    rows = [_tornado_head(scale(base_s), base_s)]
    for number, (figure, low, high) in enumerate(swings):
        y = top + number * _ROW
        bars = "".join(_between(scale(base_s), scale(value), y, css) for value, css in ((low, "bar-b"), (high, "bar-a")) if value is not None)
        columns = (
            f'<text class="num" x="{WIDTH - right}" y="{y + 17}" text-anchor="end">{_change(value, base_s)}</text>' for value, right in ((low, 90), (high, 0))
        )
        rows.append(f'<text class="name" x="0" y="{y + 17}">{escape(figure)}</text>{bars}{"".join(columns)}')
    height = top + len(swings) * _ROW
    axis = f'<path class="axis" d="M{scale(base_s):.1f} {_ROW + 4}V{height}"/>'
    told = "; ".join(f"{figure} {_change(low, base_s)} lowered, {_change(high, base_s)} raised" for figure, low, high in swings)
    return Picture(name="tornado", title="Step time with one figure 20 % lower or higher", description=told, height=height, body="".join(rows) + axis)


def _tornado_head(middle: float, base_s: float) -> str:
    words = format_quantity(base_s, "s")
    return (
        f'<text class="num" x="{middle:.1f}" y="{_ROW - 8}" text-anchor="middle">{words} a step</text>'
        f'<text class="name" x="{middle - 70:.1f}" y="{_ROW + 17}" text-anchor="end">faster</text><text class="name" x="{middle + 70:.1f}" y="{_ROW + 17}">slower</text>'
        f'<rect class="bar-b" x="{WIDTH - 168}" y="{_ROW + 7}" width="11" height="11"/><text class="name" x="{WIDTH - 90}" y="{_ROW + 17}" text-anchor="end">20 % less</text>'
        f'<rect class="bar-a" x="{WIDTH - 78}" y="{_ROW + 7}" width="11" height="11"/><text class="name" x="{WIDTH}" y="{_ROW + 17}" text-anchor="end">20 % more</text>'
    )


def _between(one: float, other: float, y: float, css: str) -> str:
    return f'<rect class="{css}" x="{min(one, other):.1f}" y="{y + 4}" width="{abs(one - other):.1f}" height="{_BAR}"/>'


def _change(value: float | None, base_s: float) -> str:
    if value is None:
        return "does not fit"
    return "no change" if abs(value / base_s - 1) < 0.0005 else f"{value / base_s - 1:+.1%}"


def scaling_curve(scales: Sequence[Choice]) -> Picture:
    """Tokens per second by chips, beside what the best per chip would give; labels: how much of that is reached."""
    points = sorted((choice.num_chips, choice.throughput_tokens_per_s) for choice in scales)
    most = max(rate / chips for chips, rate in points)
    spots = [
        Spot(
            x=float(chips),
            y=rate,
            label=f"{rate / chips / most:.0%}",
            words=f"{count(chips, 'chip')}: {rate:,.0f} tokens/s, {rate / chips:,.0f} a chip, {rate / chips / most:.0%} of the best",
        )
        for chips, rate in points
    ]
    ideal = [(float(chips), most * chips) for chips in (points[0][0], points[-1][0])]
    chart = Labelled(
        x_name="chips",
        y_name="tokens/s; the line: as many from each chip as at its best",
        spots=spots,
        lines=[Line(points=ideal, css="roof"), Line(points=[(float(chips), rate) for chips, rate in points], css="front")],
        format_x=lambda value: f"{value:,.0f}",
        format_y=short_count,
        x_ticks=[float(chips) for chips, _ in points],
    )
    told = "; ".join(spot.words for spot in spots)
    return Picture(name="scaling", title="How it scales", description=told, height=340, body=draw(chart, width=WIDTH, height=340))


def front_chart(front: Sequence[Choice]) -> Picture:
    """Time to train against money (or chip-hours where no rent is known), a point for each number of chips on the front.

    Grey: slower and dearer than another, but on fewer chips.
    """
    told_money = all(choice.cost_usd is not None for choice in front)
    spots, best = [], float("inf")
    for choice in sorted(front, key=lambda choice: choice.time_to_train_s):
        price = _price(choice, told_money=told_money)
        words = f"{count(choice.num_chips, 'chip')}: {format_duration(choice.time_to_train_s)}, {_price_words(choice)}"
        css = "pick" if price < best else "pick-soft"
        best = min(best, price)
        spots.append(Spot(x=choice.time_to_train_s / _DAY_S, y=price, label=count(choice.num_chips, "chip"), words=words, css=css))
    chart = Labelled(
        x_name="time to train, days",
        y_name=f"{'rent' if told_money else 'chip-hours'}; grey: slower and dearer than another, but on fewer chips",
        spots=spots,
        lines=[Line(points=[(spot.x, spot.y) for spot in spots if spot.css == "pick"], css="front")],
        format_x=lambda value: f"{value:,g}",
        format_y=lambda value: f"${short_count(value)}" if told_money else short_count(value),
    )
    title = f"Time against {'money' if told_money else 'chip-hours'}, by number of chips"
    return Picture(name="front", title=title, description="; ".join(spot.words for spot in spots), height=380, body=draw(chart, width=WIDTH, height=380))


def _price(choice: Choice, *, told_money: bool) -> float:
    return choice.cost_usd if told_money and choice.cost_usd is not None else choice.num_chips * choice.time_to_train_s / 3600


def _price_words(choice: Choice) -> str:
    return f"{choice.num_chips * choice.time_to_train_s / 3600:,.0f} chip-hours" if choice.cost_usd is None else money(choice.cost_usd)


def _row(name: str, y: float, ends: tuple[float, float], words: str, css: str, *, limit: float = WIDTH) -> str:
    """A bar with its name left of all bars and its words behind it, or before it where they would pass ``limit``."""
    start, end = ends
    width = max(1.0, end - start)
    at, anchor = (start + width + 8, "start") if start + width + 8 + 6.3 * len(words) <= limit else (start - 8, "end")
    return (
        f'<text class="name" x="0" y="{y + 17}">{escape(name)}</text><rect class="{css}" x="{start:.1f}" y="{y + 4}" width="{width:.1f}" height="{_BAR}" rx="2"/>'
        f'<text class="num" x="{at:.1f}" y="{y + 17}" text-anchor="{anchor}">{escape(words)}</text>'
    )
