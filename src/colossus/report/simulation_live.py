"""A simulation as it is played: the state at a moment of its clock, as a picture for a terminal and as one plain line.

Neither sleeps, prints nor reads a clock: who plays says at which moment of the simulated time it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from colossus.report.plot_text import sparkline
from colossus.report.simulation_words import STATES, heading, incident_words, of_first
from colossus.report.words import count, duration, percent
from colossus.spec.causes import LABELS, Cause
from colossus.spec.simulation import NodeState, SimulatedIncident, Simulation
from colossus.spec.units import format_quantity

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

_BAR, _SPARK = 40, 60
_LAST = 6


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The first replica at ``at_s``: where its time went so far, what its nodes do and the site draws now, what happened last."""

    at_s: float
    fraction: float
    step: int
    shares: dict[Cause, float]
    nodes: dict[NodeState, float]
    site_w: float | None
    recent_w: Sequence[float]
    num_incidents: int
    last: Sequence[SimulatedIncident]


class Player:
    """Answers what a simulation was like at any moment, from its course and incidents."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        course = simulation.course
        self._sums = {cause: [0.0, *accumulate(values)] for cause, values in course.shares.items()}
        self._steps = [0.0, *accumulate(rate * course.bin_s for rate in course.steps_per_s)]
        self._times = [incident.time_s for incident in simulation.incidents]

    @property
    def length_s(self) -> float:
        return self.simulation.first.wall_s

    def at(self, at_s: float) -> Moment:
        """``at_s`` beyond the end is the end."""
        course = self.simulation.course
        at_s = min(max(at_s, 0.0), self.length_s)
        bins = max(1, len(self._steps) - 1)
        index = min(int(at_s / course.bin_s), bins - 1) if course.bin_s else 0
        place = min(at_s / course.bin_s, float(bins)) if course.bin_s else 0.0
        past = bisect_right(self._times, at_s)
        total = sum(_until(sums, place) for sums in self._sums.values()) or 1.0
        return Moment(
            at_s=at_s,
            fraction=at_s / self.length_s if self.length_s else 1.0,
            step=self.simulation.first.steps if at_s >= self.length_s else round(_until(self._steps, place)),
            shares={cause: _until(sums, place) / total for cause, sums in self._sums.items()},
            nodes={state: values[index] for state, values in course.nodes.items() if index < len(values)},
            site_w=course.site_w[index] if index < len(course.site_w) else None,
            recent_w=course.site_w[max(0, index - _SPARK + 1) : index + 1],
            num_incidents=past,
            last=self.simulation.incidents[max(0, past - _LAST) : past],
        )


def _until(sums: Sequence[float], place: float) -> float:
    """Of running sums, the value at a place between two."""
    below = min(int(place), len(sums) - 1)
    above = min(below + 1, len(sums) - 1)
    return sums[below] + (sums[above] - sums[below]) * (place - below)


def line(moment: Moment) -> str:
    """``day 12.5  goodput 91.4 %  step 218,400  54 standstills  power 26.1 MW  spare 916, in repair 43  last: ...``."""
    nodes = ", ".join(f"{STATES[state][0]} {number:,.0f}" for state, number in moment.nodes.items() if number >= 0.5)
    parts = [
        clock(moment.at_s),
        f"goodput {percent(moment.shares.get(Cause.PRODUCTIVE, 0.0))}",
        f"step {moment.step:,}",
        count(moment.num_incidents, "standstill"),
        f"power {format_quantity(moment.site_w, 'W')}" if moment.site_w is not None else "",
        f"nodes: {nodes}" if nodes else "",
        f"last: {incident_words(moment.last[-1])}" if moment.last else "",
    ]
    return "  ".join(filter(None, parts))


def clock(at_s: float) -> str:
    """``day 12, 07:30``, days from 1 on."""
    days, rest = divmod(int(at_s), 86400)
    return f"day {days + 1}, {rest // 3600:02d}:{rest // 60 % 60:02d}"


def picture(moment: Moment, simulation: Simulation) -> Group:
    """Bars, nodes, power and the last interruptions, for a terminal."""
    from rich.console import Group
    from rich.text import Text

    speed = f"{clock(moment.at_s)} of {duration(simulation.first.wall_s)}   step {moment.step:,} of {simulation.num_steps:,}   {count(moment.num_incidents, 'standstill')}"
    rows: list[RenderableType] = [
        Text(heading(simulation) + of_first(simulation), style="bold"),
        Text(speed),
        Text(_bar(moment.fraction, 60), style="dim"),
        Text(""),
    ]
    rows += [Text("where the time went so far"), _shares(moment), Text("")]
    rows += [Text("nodes now"), _nodes(moment, simulation.num_nodes)]
    if moment.site_w is not None:
        rows += [Text(""), Text(f"power of the site  {format_quantity(moment.site_w, 'W'):>9}  {sparkline(list(moment.recent_w), _SPARK)}")]
    rows += [Text(""), Text("last interruptions"), *(Text(f"  {clock(each.time_s)}  {_told(each)}") for each in moment.last)]
    rows += [Text("")] * (_LAST - len(moment.last))
    return Group(*rows)


def _bar(fraction: float, width: int) -> str:
    filled = round(min(1.0, max(0.0, fraction)) * width)
    return "█" * filled + "░" * (width - filled)


def _shares(moment: Moment) -> RenderableType:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for cause, share in moment.shares.items():
        if share > 0 or cause is Cause.PRODUCTIVE:
            grid.add_row(f"  {LABELS[cause]}", f"{percent(share):>8}", _bar(share, _BAR).rstrip("░"))
    return grid


def _nodes(moment: Moment, total: int) -> RenderableType:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for state, (label, _) in STATES.items():
        if state in moment.nodes:
            number = moment.nodes[state]
            grid.add_row(f"  {label}", f"{number:>9,.0f}", _bar(number / (total or 1), _BAR).rstrip("░"))
    return grid


def _told(incident: SimulatedIncident) -> str:
    """What, and what was done; in one line."""
    return f"{incident_words(incident)}; {incident.action.replace('_', ' ')}, stood {duration(incident.downtime_s)}, lost {duration(incident.lost_s)}"
