"""A build-out as one self-contained page: chips, power, money and compute over time, what was short when, and where each figure is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from html import escape

from colossus.report import build_out_words as words
from colossus.report import svg
from colossus.report.plan_words import money, short_count
from colossus.report.shell import document
from colossus.report.svg import Chart, Series
from colossus.spec.build_out import BuildOut
from colossus.spec.units import format_quantity

_NUM_POINTS = 240
SIZES = {"wide": (1060, 330), "narrow": (400, 300)}


def page(site: BuildOut) -> str:
    """The whole page; sections without data are left out."""
    sections = [
        f'<header><div class="head"><h1>{escape(site.name)}</h1><span class="pill done">simulated</span></div>'
        f'<p class="verdict">{escape(words.verdict(site))}</p><p class="when">{site.begin} to {site.day(site.num_days - 1)}, day by day</p></header>',
        _cards(site),
        *(_charted(chart, remark) for chart, remark in charts(site)),
        _limits(site),
        _section("Against what others published", _table(words.COMPARED_HEADER, words.compared_rows(site)), _COMPARED) if site.compared else "",
        _section("When which chips run", _table(words.GROWTH_HEADER, words.growth_rows(site))),
        _section("Sources of power", _table(words.SUPPLY_HEADER, words.supply_rows(site))),
        f"<footer>{escape(' '.join(site.notes))} {escape(_FOOTER)}</footer>",
    ]
    return document(site.name, ("page.svg.css", "page.build_out.css", "page.css"), sections)


_COMPARED = (
    "Facility power is what a site is built for, not what it draws. Our design day's cooling was chosen knowing the first of these figures; "
    "a site's price of chips and building is taken from the same source as the capital it is held against."
)
_FOOTER = (
    "Every figure is simulated from the dates and prices above. Lit chips count as computing all the time, at the stated MFU and without failures; "
    "watts by phase are fitted to measured logs of H100 nodes and scaled to other nodes by their rated power."
)


def charts(site: BuildOut) -> list[tuple[Chart, str]]:
    """Pictures with what is said below each."""
    return [
        (_chips(site), "Area: chips that are there. Green: those that have power in the day's hottest hour; a gap between the two stands dark."),
        (_power(site), _POWER),
        (_money(site), "All money since the beginning. The difference between the lines is building, energy, staff and maintenance."),
        (_compute(site), _compute_remark(site)),
        (_swings(site), "All nodes of a synchronous job go up and down together within each step; batteries take up as much of it as their power allows."),
    ]


_POWER = (
    "Need: all chips computing in the day's hottest hour. Supply: the narrower of grid contract and substation, and turbines; grid: the same without turbines. "
    "Built: what the site is built for, rated power on the hottest day."
)


def _points(site: BuildOut, values: Sequence[float]) -> list[svg.Point]:
    return svg.downsample([(float(index), float(value)) for index, value in enumerate(values)], _NUM_POINTS)


def _chart(site: BuildOut, title: str, description: str, y_name: str, series: Sequence[Series], *, unit: str = "") -> Chart:
    return Chart(
        title=title,
        description=description,
        series=series,
        x_name="date",
        y_name=y_name,
        from_zero=True,
        x_range=(0.0, float(site.num_days - 1)),
        x_ticks=lambda low, high, number: _month_ticks(site, number),
        format_x=lambda index: (site.begin + timedelta(days=round(index))).strftime("%Y-%m"),
        format_y=(lambda value: f"${short_count(value)}") if unit == "$" else lambda value: format_quantity(value, unit) if value else "0",
    )


def _month_ticks(site: BuildOut, number: int) -> list[float]:
    """Firsts of months, as many as have room."""
    months = [float(index) for index in range(site.num_days) if site.day(index).day == 1]
    step = next(step for step in (1, 2, 3, 6, 12, 24, 60, 120, 400) if len(months) / step <= number)
    return months[::step]


def _chips(site: BuildOut) -> Chart:
    all_chips = [site.all_chips(index) for index in range(site.num_days)]
    lit = [chips - dark for chips, dark in zip(all_chips, site.num_dark_chips, strict=True)]
    series = [
        Series(name="there", points=_points(site, all_chips), css="s-chips", area=True),
        Series(name="with power", points=_points(site, lit), css="s-lit"),
    ]
    return _chart(site, "Chips", f"{all_chips[-1]:,} chips on the last day, {lit[-1]:,} of them with power", "chips", series)


def _power(site: BuildOut) -> Chart:
    supply = [site.supply_w(index) for index in range(site.num_days)]
    grid = [min(pair) for pair in zip(site.grid_w, site.substation_w, strict=True)]
    series = [
        Series(name="need", points=_points(site, site.need_w), css="s-need"),
        Series(name="supply", points=_points(site, supply), css="s-supply"),
        Series(name="grid", points=_points(site, grid), css="s-grid", area=True),
        Series(name="built", points=_points(site, site.capacity_w), css="s-built"),
    ]
    told = f"need {words.watts(site.need_w[-1])}, supply {words.watts(supply[-1])}, built for {words.watts(site.capacity_w[-1])} on the last day"
    return _chart(site, "Power", told, "at the grid", series, unit="W")


def _money(site: BuildOut) -> Chart:
    total = [site.total_usd(index) for index in range(site.num_days)]
    hardware = site.spent_usd["chips and network"]
    series = [
        Series(name="all", points=_points(site, total), css="s-money", area=True),
        Series(name="chips and network", points=_points(site, hardware), css="s-hardware"),
    ]
    return _chart(site, "Money", f"{money(total[-1])} by the last day, {money(hardware[-1])} of it for chips and network", "spent", series, unit="$")


def _compute(site: BuildOut) -> Chart:
    if site.job is None:
        series = [Series(name="training compute", points=_points(site, site.total_flop), css="s-flop", area=True)]
        return replace(
            _chart(site, "Compute delivered", f"{site.total_flop[-1]:.3g} FLOP by the last day", "FLOP so far", series), format_y=lambda value: f"{value:.3g}"
        )
    job = site.job
    series = [
        Series(name="with growth", points=_points(site, job.num_tokens), css="s-flop", area=True),
        Series(name="without", points=_points(site, job.num_ungrown_tokens), css="s-ungrown"),
    ]
    told = f"{words.tokens(job.num_tokens[-1])} tokens by the last day"
    return replace(_chart(site, f"What {job.model} gains", told, "tokens so far", series), format_y=lambda value: words.tokens(value) if value else "0")


def _compute_remark(site: BuildOut) -> str:
    each = f"Chips with power at {site.mfu_fraction:.0%} of their 16-bit peak"
    return (
        f"{each} while they step, before failures; summed over time."
        if site.job is None
        else f"{each}, {format_quantity(site.job.flop_per_token, 'FLOP')} a token, since {site.job.begin}. Without: had the site stayed as its first phase left it. Before failures."
    )


def _swings(site: BuildOut) -> Chart:
    series = [
        Series(name="within a step", points=_points(site, site.swing_w), css="s-built"),
        Series(name="left after batteries", points=_points(site, site.swing_left_w), css="s-swing", area=True),
    ]
    told = f"at most {words.watts(max(site.swing_w))} within a step, {words.watts(max(site.swing_left_w))} after batteries"
    return _chart(site, "Swings of power", told, "up and down", series, unit="W")


def _charted(chart: Chart, remark: str) -> str:
    key = chart.title.split()[0].lower()
    drawn = "".join(f'<div class="{size}">{svg.draw(chart, width=width, height=height, key=f"{key}-{size}")}</div>' for size, (width, height) in SIZES.items())
    return _section(chart.title, drawn, remark)


def _limits(site: BuildOut) -> str:
    if not site.shortages:
        return _section("Where power was the limit", '<p class="soft">Nowhere: the supply carried every chip on every day.</p>')
    remark = "Instead of some chips dark and others at full speed, all could have run slower: the last column, by the cube law of clocks."
    return _section("Where power was the limit", _table(words.LIMIT_HEADER, words.limit_rows(site)), remark)


def _cards(site: BuildOut) -> str:
    cards = (
        f'<div class="card"><dt>{escape(name)}</dt><dd><div class="value">{escape(value)}</div><div class="soft">{escape(remark)}</div></dd></div>'
        for name, value, remark in words.figures(site)
    )
    return f'<dl class="cards">{"".join(cards)}</dl>'


def _section(title: str, body: str, remark: str = "") -> str:
    told = f'<p class="soft">{escape(remark)}</p>' if remark else ""
    return f"<section><h2>{escape(title)}</h2>{body}{told}</section>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    cells = ("".join(f'<td data-name="{escape(name)}">{escape(cell)}</td>' for name, cell in zip(header, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
