"""A simulation as one self-contained page, for a reader who never saw the program: verdict, figures, pictures with a line each, tables, what was assumed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import tomli_w

from colossus.report import simulation_words as words
from colossus.report.plan_words import money
from colossus.report.shell import document
from colossus.report.simulation_plots import SHEETS, SIZES, Plot, plots
from colossus.report.words import count, duration, percent
from colossus.spec.causes import MEANINGS
from colossus.spec.simulation import Simulation

_TOLD = {
    "goodput": "Goodput: the share of the time in which the job did steps that count, each once.",
    "badput": "Every other moment has a name; with goodput they add up to the whole time.",
}


def page(simulation: Simulation) -> str:
    """The whole page; sections without data are left out."""
    drawn = {plot.name: plot for plot in plots(simulation)}
    sections = [
        _head(simulation),
        _cards(simulation),
        _section(drawn["timeline"].title, _plot(drawn["timeline"]) + _sub(drawn.get("losses")) + _times(simulation)),
        _section(f"What interrupted the job{words.of_replicas(simulation)}", _causes(simulation, drawn.get("causes"))),
        _plotted(drawn.get("power"), _over(simulation, "Power and energy") + _pairs(words.bill_rows(simulation)[:4])),
        _plotted(drawn.get("nodes"), _over(simulation, "Nodes") + _nodes(simulation)),
        _section(f"The costliest interruptions{words.of_first(simulation)}", _incidents(simulation)) if simulation.incidents else "",
        _plotted(drawn.get("money"), _money(simulation)),
        *(_plotted(drawn.get(name)) for name in ("goodput", "time-to-train", "interruptions")),
        _section("What it starts from", _pairs(words.plan_rows(simulation))),
        _section("What was left open and what it came to", _pairs(words.chosen_rows(simulation))) if simulation.chosen else "",
        _scenario(simulation),
        f"<footer>{_foot(simulation)}</footer>",
    ]
    title = f"{words.heading(simulation)}: {words.goodput_words(simulation)}, simulated"
    return document(title, (*SHEETS, "page.css"), sections)


def _text(told: str) -> str:
    """Escaped, with every number kept on the line of its unit."""
    return re.sub(r"(?<=\d) (?=[a-zA-Z%]{1,3}\b)", "\u00a0", escape(told))


def _head(simulation: Simulation) -> str:
    return (
        f'<header><div class="head"><h1>{escape(words.heading(simulation))}</h1><span class="pill done">simulated</span></div>'
        f'<p class="verdict">{_text(words.verdict(simulation))}</p><p class="when">{_text(words.terms(simulation))}</p></header>'
    )


def _cards(simulation: Simulation) -> str:
    cards = (
        f'<div class="card"><dt>{escape(name)}</dt><dd><div class="value">{_text(value)}</div><div class="soft">{_text(remark)}</div></dd></div>'
        for name, value, remark in words.figures(simulation)
    )
    return f'<dl class="cards">{"".join(cards)}</dl>'


def _plot(plot: Plot | None) -> str:
    if plot is None:
        return ""
    drawn = "".join(f'<div class="{size}">{plot.inline(size)}</div>' for size in SIZES)
    return f'{drawn}<p class="soft told">{_text(plot.remark)}</p>'


def _plotted(plot: Plot | None, more: str = "") -> str:
    return _section(plot.title, _plot(plot) + more) if plot else ""


def _sub(plot: Plot | None) -> str:
    return f"<h3>{escape(plot.title)}</h3>{_plot(plot)}" if plot else ""


def _over(simulation: Simulation, title: str) -> str:
    """Above a table over replicas below a picture of the first; nothing where there is one."""
    several = words.of_replicas(simulation)
    return f"<h3>{escape(title + several)}</h3>" if several else ""


def _times(simulation: Simulation) -> str:
    """The badput table."""
    rows = []
    for cause, label, seconds, fraction, over in words.time_rows(simulation):
        swatch = f'<svg viewBox="0 0 11 11" aria-hidden="true"><rect class="c-{cause.value}" width="11" height="11" rx="2"/></svg>'
        rows.append(
            f'<tr><td class="swatch">{swatch}</td><td class="nowrap">{escape(label)}</td><td class="right">{duration(seconds)}</td>'
            f'<td class="right">{percent(fraction)}</td><td class="right why">{over}</td><td class="why soft">{escape(MEANINGS[cause])}</td></tr>'
        )
    wall_s, told = words.time_total(simulation)
    total = f'<tr><td></td><td>wall time</td><td class="right">{duration(wall_s)}</td><td></td><td class="why"></td><td class="why soft">{told}</td></tr>'
    over = "<th class='why right'>9 in 10</th>" if len(simulation.tallies) > 1 else "<th class='why'></th>"
    head = f"<thead><tr><th></th><th></th><th>time</th><th>share</th>{over}<th class='why'></th></tr></thead>"
    title = _over(simulation, "Where the time went")
    return f'{title}<table class="times">{head}<tbody>{"".join(rows)}{total}</tbody></table><p class="soft told">{_TOLD["goodput"]} {_TOLD["badput"]}</p>'


def _causes(simulation: Simulation, plot: Plot | None) -> str:
    if not any(one.num_interruptions for one in simulation.tallies):
        faults = words.fault_counts(simulation)[1]
        return f'<p class="soft">Nothing: {count(faults, "fault")} of the machine, none of which stopped the job.</p>'
    costs = [f"{name}{words.of_first(simulation)}" for name in ("lost work", "standstill")]
    header = ("cause", "interruptions", *_ends_name(simulation), "faults of the whole machine", *costs)
    rows = [
        (
            words.cause_name(row.cause),
            f"{row.number:,}",
            *_ends(row.over),
            "–" if row.num_faults is None else f"{row.num_faults:,}",
            duration(row.lost_s),
            duration(row.downtime_s),
        )
        for row in words.cause_rows(simulation)
    ]
    told = "Stops by order or by the grid are no faults. Faults of nodes that were spare or out of use at the time do not interrupt the job. Lost work: steps since the last copy of the state, done again."
    told = f"{told} {words.standstills(simulation)}".strip()
    return f'{_plot(plot)}{_table(header, rows)}<p class="soft told">{told}</p>'


def _nodes(simulation: Simulation) -> str:
    total = simulation.num_nodes or 1
    rows = [
        (label, f"{mean:,.1f}", *_ends(words.node_over(simulation, state)), percent(mean / total), meaning)
        for state, label, mean, meaning in words.node_rows(simulation)
    ]
    return _table(("state", "nodes on average", *_ends_name(simulation), "share", "what it means"), rows)


def _ends(over: str) -> tuple[str, ...]:
    """A column that only replicas have."""
    return (over,) if over else ()


def _ends_name(simulation: Simulation) -> tuple[str, ...]:
    return ("9 in 10",) if len(simulation.tallies) > 1 else ()


def _incidents(simulation: Simulation) -> str:
    shown = words.costliest(simulation)
    told = f"Those that took the most time from the job, of {count(len(simulation.incidents), 'standstill')}: work done twice and the standstill until it stepped again."
    return f'{_table(words.INCIDENT_HEADER, [words.incident_cells(each) for each in shown])}<p class="soft told">{told}</p>'


def _money(simulation: Simulation) -> str:
    rows = [
        (name, money(usd), *_ends(words.money_over(simulation, name)), percent(fraction), meaning)
        for name, usd, fraction, meaning in words.money_rows(simulation)
    ]
    return _table(("class", "cost", *_ends_name(simulation), "share", "what it is"), rows) + _pairs(words.bill_rows(simulation)[4:])


def _scenario(simulation: Simulation) -> str:
    """Every value that was assumed, for who wants to try another."""
    told = escape(tomli_w.dumps(_known(simulation.scenario.to_data())))
    return _section("What was assumed", f"<details><summary>scenario {escape(simulation.scenario.name)}, in full</summary><pre>{told}</pre></details>")


def _known(data: Any) -> Any:
    """Without what is not set: TOML has no word for it."""
    if isinstance(data, dict):
        return {key: _known(value) for key, value in data.items() if value is not None}
    return [_known(each) for each in data] if isinstance(data, list) else data


def _foot(simulation: Simulation) -> str:
    notes = " ".join(note[0].upper() + note[1:].rstrip(".") + "." for note in simulation.notes if note)
    return _text(
        f"{notes} Every figure here is simulated: faults are drawn from published rates, the step's time is estimated in closed form. "
        "The same seed gives the same page."
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{_text(value)}</td></tr>' for name, value in pairs)
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>' if rows else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    cells = ("".join(f'<td data-name="{escape(name)}">{_text(cell)}</td>' for name, cell in zip(header, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
