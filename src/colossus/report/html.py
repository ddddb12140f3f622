"""A report as one page that carries everything: no request, no script needed to read it, light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from colossus.report import charts, svg, words
from colossus.report.record import Report, Status
from colossus.report.shell import document
from colossus.spec.causes import MEANINGS
from colossus.spec.errors import ColossusError
from colossus.spec.machine import Figure, How, Machine
from colossus.spec.run import Run
from colossus.spec.units import format_quantity

_MOST_ROWS = 200


def page(report: Report, run: Run | None = None) -> str:
    """The whole page; with ``run`` also its job file, machine, plan and where its artefacts lie."""
    title = f"{report.name or 'Run'}: {words.verdict(report)}"
    sections = [
        _head(report),
        _cards(report),
        _chart_section("Loss", charts.loss_chart(report), "loss")
        if report.final_loss is not None or any(value is not None for value in report.loss.values)
        else "",
        _chart_section("Speed", charts.speed_chart(report), "speed") if report.steps else "",
        _time_section(report),
        _planned_section(report),
        _faults_section(report),
        _two(_checkpoints(report), _layout(report)),
        *(_folder(run) if run else ()),
        f"<footer>{_provenance(report)}</footer>",
    ]
    script = f'<div id="tip" aria-hidden="true"></div><script>\n{_asset("page.js")}</script>'
    return document(title, ("page.svg.css", "page.causes.css", "page.css"), sections, script)


def _asset(name: str) -> str:
    return files("colossus.report").joinpath(name).read_text(encoding="utf-8")


def _text(told: str) -> str:
    """Escaped, with every number kept on the line of its unit."""
    return re.sub(r"(?<=\d) (?=\S)", "\u00a0", escape(told))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _head(report: Report) -> str:
    began = datetime.fromtimestamp(report.started_at_s, UTC).strftime("began %Y-%m-%d %H:%M UTC") if report.started_at_s > 1e8 else "in simulated time"
    workers = words.count(report.num_workers, "worker") + ", " if report.num_workers else ""
    platform = f"{report.platform}, " if report.platform else ""
    return (
        f'<header><div class="head"><h1>{escape(report.name or "Run")}</h1><span class="pill {report.status.value}">{_badge(report)}</span></div>'
        f'<p class="verdict">{_text(words.verdict(report))}</p><p class="when">{escape(workers + platform)}{began}</p></header>'
    )


def _badge(report: Report) -> str:
    """How it ended; of what was only simulated that above all."""
    if report.how is How.MEASURED:
        return report.status.value
    return report.how.value if report.status is Status.DONE else f"{report.how.value}, {report.status.value}"


def _cards(report: Report) -> str:
    cards = (
        f'<div class="card"><dt>{escape(name)}</dt><dd><div class="value">{_text(value)}</div><div class="soft">{_text(remark)}</div></dd></div>'
        for name, value, remark in words.figures(report)
    )
    return f'<dl class="cards">{"".join(cards)}</dl>'


def _chart_section(title: str, chart: svg.Chart, key: str) -> str:
    drawn = (f'<div class="{size}">{svg.draw(chart, width=width, height=height, key=f"{key}-{size}")}</div>' for size, (width, height) in charts.SIZES.items())
    keys = [
        text
        for present, text in ((chart.ticks, "Small ticks on the axis: checkpoints."), (chart.marks, "Dashed lines: faults, in the order of the table below."))
        if present
    ]
    return _section(title, "".join(drawn) + (f'<p class="soft">{" ".join(keys)}</p>' if keys else ""))


def _time_section(report: Report) -> str:
    if not report.wall_s:
        return ""
    bars = "".join(f'<div class="{size}">{charts.time_bar(report, width=width, key=f"time-{size}")}</div>' for size, (width, _) in charts.SIZES.items())
    rows = "".join(_time_row(cause.value, label, seconds, fraction, MEANINGS[cause]) for cause, label, seconds, fraction in words.time_rows(report))
    total = f'<tr><td></td><td>wall time</td><td class="right">{words.duration(report.wall_s)}</td><td></td><td></td><td class="why soft">the sum of the above, exactly</td></tr>'
    notes = "".join(f"<li{' class=warn' if 'deterministic' in note else ''}>{_text(note)}</li>" for note in words.notes(report))
    return _section(
        "Where the time went", f'{bars}<table class="times"><tbody>{rows}{total}</tbody></table>' + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _time_row(css: str, label: str, seconds: float, fraction: float, meaning: str) -> str:
    swatch = f'<svg viewBox="0 0 11 11" aria-hidden="true"><rect class="c-{css}" width="11" height="11" rx="2"/></svg>'
    bar = f'<svg viewBox="0 0 100 9" preserveAspectRatio="none" aria-hidden="true"><rect class="c-{css}" width="{max(0.4, fraction * 100) if fraction else 0:.2f}" height="9"/></svg>'
    return (
        f'<tr><td class="swatch">{swatch}</td><td class="nowrap">{escape(label)}</td><td class="right">{words.duration(seconds)}</td>'
        f'<td class="right">{words.percent(fraction)}</td><td class="bar">{bar}</td><td class="why soft">{escape(meaning)}</td></tr>'
    )


def _planned_section(report: Report) -> str:
    if not report.planned:
        return ""
    rows = ([_text(cell.strip()) if index else _part(cell) for index, cell in enumerate(words.planned_cells(row))] for row in report.planned)
    source = (
        f'<p class="soft">The planned step rests on: {_text(report.planned_source)}. Parts are of one step that was profiled.</p>'
        if report.planned_source
        else ""
    )
    how = report.how.value
    return _section(f"Planned against {how}", _table(("", "planned", how, "ratio", "expected"), rows) + source)


def _part(name: str) -> str:
    return f'<span class="soft">{_text(name.strip())}</span>' if name.startswith(" ") else _text(name)


def _faults_section(report: Report) -> str:
    if not report.incidents:
        return _section("Faults", '<p class="soft">None.</p>') if report.steps else ""
    header = ("", "time", "step", "fault", "decision", "lost work", "downtime", "its parts")
    rows = []
    for number, incident in enumerate(report.incidents[:_MOST_ROWS], 1):
        time, fault, decision, lost, downtime, parts = map(_text, words.incident_cells(incident))
        reason = f'<div class="soft">{escape(incident.reason)}</div>' if incident.reason else ""
        rows.append([str(number), time, f"{incident.from_step:,}", fault, decision + reason, lost, downtime, parts])
    more = len(report.incidents) - _MOST_ROWS
    return _section("Faults and what they cost", _table(header, rows) + (f'<p class="soft">and {more:,} more</p>' if more > 0 else ""))


def _checkpoints(report: Report) -> str:
    return _section("Checkpoints", _pairs((name, _text(value)) for name, value in words.checkpoint_rows(report)))


def _layout(report: Report) -> str:
    rows = [("layout", _text(words.describe_layout(report.layout)))]
    rows += [
        (f"gang {attempt.attempt}", _text(f"{words.count(attempt.num_workers, 'worker')} at {words.duration(attempt.time_s)} ({attempt.how})"))
        for attempt in report.attempts[:8]
    ]
    if len(report.attempts) > 8:
        rows.append(("", f"and {len(report.attempts) - 8} more"))
    if report.data:
        cached = "from the cache" if report.data.cached else f"prepared in {words.duration(report.data.duration_s)}"
        told = f"{report.data.num_tokens:,} tokens, {report.data.num_validation_tokens:,} held out, vocabulary {report.data.vocab_size:,}; {cached}"
        rows.append(("data", _text(told)))
    return _section("Layout and data", _pairs(rows))


def _folder(run: Run) -> Iterable[str]:
    """What the run's folder tells besides its events; what is absent or unreadable is left out."""
    with suppress(OSError, ValueError, ColossusError):
        yield _machine(run.load_machine())
    with suppress(OSError, ValueError):
        yield _section("Job", f"<details><summary>{escape(run.job.name)}</summary><pre>{escape(run.job.read_text(encoding='utf-8'))}</pre></details>")
    named = {"run": run.folder, "events": run.events, "report": run.report_json, "checkpoints": run.checkpoints, "logs": run.logs}
    paths = ((name, f"<code>{escape(str(path.absolute()))}</code>") for name, path in named.items() if path.exists())
    yield _section("Artefacts", _pairs(paths))


def _machine(machine: Machine) -> str:
    node, chip = machine.node, machine.node.chip
    rows = [
        ("name", escape(machine.name)),
        (
            "node",
            escape(
                f"{words.count(machine.num_nodes, 'node')} of {words.count(node.num_cores, 'core')}, {format_quantity(node.memory_bytes, 'B', binary=True)}"
            ),
        ),
        ("chip", escape(f"{node.num_chips} x {chip.name} ({chip.kind})")),
    ]
    figures: list[tuple[str, Figure | None, str]] = [(f"peak, {dtype}", figure, "FLOP/s") for dtype, figure in chip.peak_flop_per_s.items()]
    figures += [("memory bandwidth", chip.memory_bandwidth_bytes_per_s, "B/s"), ("chip memory", chip.memory_bytes, "B")]
    rows += [(name, _figure(figure, unit)) for name, figure, unit in figures if figure]
    return _section("Machine", _pairs(rows))


def _figure(figure: Figure, unit: str) -> str:
    source = ", ".join(filter(None, (figure.how.value, figure.source, figure.date)))
    return f'{escape(format_quantity(figure.value, unit))} <span class="soft">({escape(source)})</span>'


def _provenance(report: Report) -> str:
    peak = f" The peak behind MFU is {escape(report.peak_how or 'of unknown source')}." if report.peak_flop_per_s else ""
    return (
        f"{words.provenance(report)}{peak} MFU counts the model's own FLOP, without recompute. "
        "Goodput is the time of steps that count, each once, over the wall time."
    )


def _two(left: str, right: str) -> str:
    return f'<div class="two">{left}{right}</div>'


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>' for name, value in pairs)
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """``rows`` hold markup already escaped."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    cells = ("".join(f'<td data-name="{escape(name)}">{cell}</td>' for name, cell in zip(header, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
