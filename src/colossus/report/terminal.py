"""A report on a terminal, as rich renderables; no colour is needed to understand it. The caller prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colossus.report import svg, words
from colossus.report.plot_text import line_plot
from colossus.report.record import Report
from colossus.spec.causes import Cause
from colossus.spec.machine import How

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

_BAR = 24


def render(report: Report, *, width: int = 96, paths: dict[str, str] | None = None) -> Group:
    """The whole report: verdict, figures, loss plot, where the time went, faults, checkpoints, where things lie.

    ``paths``: artefacts by name. ``width``: characters of the loss plot.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(words.verdict(report), style="bold"), figures_table(report)]
    plot = loss_plot(report, width=width)
    if plot:
        parts += [Text("\nloss by step" + (" (x: a worker was lost)" if report.incidents else ""), style="bold"), Text("\n".join(plot))]
    if report.wall_s:
        parts += [Text("\nwhere the time went", style="bold"), time_table(report)]
    if report.incidents:
        parts += [Text("\nfaults and what they cost", style="bold"), *fault_lines(report)]
    if report.checkpoints.num_saved or report.checkpoints.problems:
        line = "; ".join(f"{name} {value}" for name, value in words.checkpoint_rows(report))
        parts.append(Text.assemble(("\ncheckpoints  ", "bold"), line))
    if report.planned:
        parts += [Text(f"\nplanned against {report.how.value}", style="bold"), planned_table(report)]
        if report.planned_source:
            parts.append(Text("Parts are of one step that was profiled; the step is the median of all.", style="dim"))
    parts += [Text(f"• {note}") for note in words.notes(report)]
    if report.how is How.SIMULATED:
        parts.append(Text(words.provenance(report), style="dim"))
    if paths:
        parts += [Text("\nartefacts", style="bold"), pairs_table(list(paths.items()))]
    return Group(*parts)


def figures_table(report: Report) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(style="dim")
    for row in words.figures(report):
        table.add_row(*row)
    return table


def pairs_table(pairs: list[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def loss_plot(report: Report, *, width: int = 96, height: int = 8) -> list[str]:
    """The training loss in characters, with every incident marked at the step where it came."""
    points = [(float(step), value) for step, value in zip(report.loss.steps, report.loss.values, strict=True) if value is not None]
    return line_plot(svg.downsample(points), width=width, height=height, marks=[incident.from_step for incident in report.incidents])


def time_table(report: Report) -> Table:
    """Goodput and every named badput: seconds, share and a bar of characters; the rows sum to the wall time."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for cause, label, seconds, fraction in words.time_rows(report):
        good = cause is Cause.PRODUCTIVE
        bar = ("█" if good else "░") * round(fraction * _BAR) or "·"
        table.add_row(label, words.duration(seconds), words.percent(fraction), bar, style="green" if good else None)
    table.add_row("wall time", words.duration(report.wall_s), "", "", style="dim")
    return table


def planned_table(report: Report) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in (("", "left"), ("planned", "right"), (report.how.value, "right"), ("ratio", "right"), ("", "left")):
        table.add_column(name, justify=justify, no_wrap=name != "")  # type: ignore[arg-type]
    for row in report.planned:
        table.add_row(*words.planned_cells(row), style="dim" if row.is_part else None)
    return table


def fault_lines(report: Report, *, most: int = 12) -> list[RenderableType]:
    """Two lines an incident; the first dozen."""
    from rich.text import Text

    lines: list[RenderableType] = []
    for incident in report.incidents[:most]:
        head = f"✗ at {words.duration(incident.time_s)}, step {incident.from_step}: {words.fault_words(incident)}"
        cost = (
            f"  {words.decision_words(incident)}; lost {words.lost_words(incident)}; down {words.duration(incident.downtime_s)} ({words.parts_words(incident)})"
        )
        lines += [Text(head, style="red"), Text(cost)]
    if len(report.incidents) > most:
        lines.append(Text(f"  and {len(report.incidents) - most} more"))
    return lines
