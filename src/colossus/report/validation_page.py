"""A validation in pictures: estimated against measured step time as SVG, and one page that carries picture and tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape

from colossus.report import svg, words
from colossus.report.picture import style
from colossus.report.scatter import Axis, Cloud, Dot, Scatter, draw
from colossus.report.shell import document
from colossus.report.validation import RowData, Table, ValidationData, signed, step_cells, tables, verdict

_BAND = (0.9, 1.1)
_BAND_NAME = "equal, and 10 % off"
_RATIO_TICKS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
_SIZES = {"wide": (900, 600), "narrow": (400, 380)}
_RATIO_SIZES = {"wide": (900, 380), "narrow": (400, 300)}


def picture(data: ValidationData) -> str:
    """Estimated over measured step time as a picture on its own, for a README; follows the viewer's light or dark."""
    whole = data["whole"]
    notes = [
        words.count(whole["num_rows"], "run"),
        f"off by {words.percent(whole['median_error_fraction'])} at the median,",
        f"by {words.percent(whole['p90_error_fraction'])} at the 90th percentile",
    ]
    scatter = replace(against_measured(data), notes=notes)
    return draw(scatter, width=900, height=600, key="validation", style=style(("page.svg.css", "page.scatter.css"))) + "\n"


def pictures(data: ValidationData) -> list[tuple[str, str]]:
    """(name, picture on its own): estimated against measured by accelerator, and their ratio by group."""
    ratio = draw(ratios(data), width=900, height=420, key="ratios", style=style(("page.svg.css", "page.scatter.css"))) + "\n"
    return [("validation", picture(data)), ("ratios", ratio)]


def page(data: ValidationData) -> str:
    """The whole page; it asks for nothing and needs no script."""
    holds = not data["problems"]
    pill = '<span class="pill done">holds</span>' if holds else '<span class="pill failed">thresholds missed</span>'
    sections = [
        f'<header><div class="head"><h1>Estimated against measured</h1>{pill}</div><p class="verdict">{_text(verdict(data))}</p></header>',
        _cards(data),
        _section("Thresholds missed", f'<ul class="notes">{"".join(f"<li>{escape(told)}</li>" for told in data["problems"])}</ul>') if not holds else "",
        _chart("Step time, by accelerator", against_measured(data), "measured", _SIZES),
        _chart("Estimated over measured, by group", ratios(data), "ratio", _RATIO_SIZES),
        *(_section(table.title[0].upper() + table.title[1:], _table(table)) for table in tables(data)),
        _all_rows(data["rows"]),
        "<footer>Measured: as published, each run from its own source. Estimated: in closed form, with the coefficients under catalog/measured. "
        "The interval is the 5th to 95th percentile of measured over estimated time of the program's runs.</footer>",
    ]
    return document("Colossus: estimated against measured", ("page.svg.css", "page.css", "page.scatter.css"), sections)


def against_measured(data: ValidationData) -> Scatter:
    """Both step times on equal axes, a cloud for each accelerator."""
    rows = _known(data)
    times = [seconds for row in rows for seconds in (row["measured_step_s"], row["estimated_step_s"]) if seconds]
    low, high = min(times, default=1.0) / 1.3, max(times, default=1.0) * 1.3
    ticks = _time_ticks(low, high)
    return Scatter(
        title="Estimated against measured step time",
        description=verdict(data),
        x=Axis(name="measured step, s", low=low, high=high, ticks=ticks),
        y=Axis(name="estimated step, s", low=low, high=high, ticks=ticks),
        clouds=_clouds(rows, lambda row: row["accelerator"], lambda row: row["estimated_step_s"] or 0.0),
        line=((low, low), (high, high)),
        band=_BAND,
        line_name=_BAND_NAME,
    )


def ratios(data: ValidationData) -> Scatter:
    """Estimated over measured by measured step time, a cloud for each group: where the errors lie."""
    rows = _known(data)
    times = [row["measured_step_s"] or 1.0 for row in rows]
    low, high = min(times, default=1.0) / 1.3, max(times, default=1.0) * 1.3
    most = 1.05 * max([1.5, *(max(_ratio(row), 1 / _ratio(row)) for row in rows)])
    return Scatter(
        title="Estimated over measured step time",
        description=verdict(data),
        x=Axis(name="measured step, s", low=low, high=high, ticks=_time_ticks(low, high)),
        y=Axis(name="estimated over measured", low=1 / most, high=most, ticks=[(at, f"{at:g}") for at in _RATIO_TICKS if 1 / most <= at <= most]),
        clouds=_clouds(rows, lambda row: row["group"], _ratio),
        line=((low, 1.0), (high, 1.0)),
        band=_BAND,
        line_name=_BAND_NAME,
    )


def _known(data: ValidationData) -> list[RowData]:
    return [row for row in data["rows"] if row["measured_step_s"] and row["estimated_step_s"]]


def _ratio(row: RowData) -> float:
    return (row["estimated_step_s"] or 1.0) / (row["measured_step_s"] or 1.0)


def _time_ticks(low: float, high: float) -> list[tuple[float, str]]:
    ticks = svg.log_ticks(low, high)
    return [(at, f"{at:g}") for at in (ticks if len(ticks) >= 3 else svg.nice_ticks(low, high, 5))]


def _clouds(rows: Sequence[RowData], name: Callable[[RowData], str], y: Callable[[RowData], float]) -> list[Cloud]:
    """A cloud for every name, the largest first, so that the small ones lie on top."""
    named: dict[str, list[Dot]] = {}
    for row in rows:
        named.setdefault(name(row), []).append(Dot(x=row["measured_step_s"] or 0.0, y=y(row), words=_dot_words(row)))
    return [Cloud(name=key, dots=dots) for key, dots in sorted(named.items(), key=lambda item: (-len(item[1]), item[0]))]


def _dot_words(row: RowData) -> str:
    run, what, measured, estimated, error = step_cells(row)
    return f"{run}: {what}\nmeasured {measured}, estimated {estimated}, {error}"


def _text(told: str) -> str:
    """Escaped, with every number kept on the line of its unit."""
    return re.sub(r"(?<=\d) (?=\S)", "\u00a0", escape(told))


def _cards(data: ValidationData) -> str:
    whole, memory = data["whole"], data["memory"]
    cards = [
        ("runs", f"{whole['num_rows']:,}", f"{sum(row['reason'] is not None for row in data['rows'])} left out"),
        ("median error", words.percent(whole["median_error_fraction"]), "of step time"),
        ("90th percentile", words.percent(whole["p90_error_fraction"]), "of step time"),
        ("bias", signed(whole["bias_fraction"]), "median error with its sign"),
        ("inside the interval", words.percent(whole["inside_fraction"]), "90 % are promised"),
        ("memory, median error", words.percent(memory["median_error_fraction"]), f"of {words.count(memory['num_rows'], 'run')} that publish it"),
    ]
    drawn = (
        f'<div class="card"><dt>{escape(name)}</dt><dd><div class="value">{escape(value)}</div><div class="soft">{escape(remark)}</div></dd></div>'
        for name, value, remark in cards
    )
    return f'<dl class="cards">{"".join(drawn)}</dl>'


def _chart(title: str, scatter: Scatter, key: str, sizes: dict[str, tuple[int, int]]) -> str:
    drawn = (f'<div class="{size}">{draw(scatter, width=width, height=height, key=f"{key}-{size}")}</div>' for size, (width, height) in sizes.items())
    return _section(title, "".join(drawn)) if scatter.clouds else ""


def _all_rows(rows: Sequence[RowData]) -> str:
    table = Table(title="", header=("run", "", "measured", "estimated", "error"), rows=[step_cells(row) for row in rows if row["reason"] is None], num_words=2)
    return _section("Every run", f"<details><summary>{words.count(len(table.rows), 'run')}</summary>{_table(table)}</details>") if table.rows else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(table: Table) -> str:
    css = ["" if number < table.num_words else ' class="right"' for number in range(len(table.header))]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(table.header, css, strict=True))
    body = "".join("<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, css, strict=True)) + "</tr>" for row in table.rows)
    note = f'<p class="soft">{escape(table.note)}</p>' if table.note else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'
