"""The site's power in a simulation: what it draws, when a cap or the grid slows or stops the job, and the bill."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from colossus.catalog.measured import power_figures
from colossus.estimate.power import PhaseWatts, StepShares, full_load_site_w, least_clock_fraction, network_w, node_watts, site_pue
from colossus.policy.power import Action, PowerState, decide
from colossus.spec.errors import Problem, SpecError
from colossus.spec.machine import Machine
from colossus.spec.scenario import GridEvent, PowerScenario, Scenario
from colossus.spec.simulation import Bill, NodeState
from colossus.spec.units import format_quantity
from colossus.twin.climate import HOUR_S, YEAR_S, Climate
from colossus.twin.money import MoneyModel
from colossus.twin.streams import draw

_CLOCKS = 101
_SPEED_STEPS = 100  # limits are told in hundredths of the full speed, rounded down, so that neighbouring hours join


class Load(Protocol):
    """What of a workload draws power."""

    @property
    def num_job_chips(self) -> int: ...
    @property
    def step_s(self) -> float: ...
    @property
    def parts_s(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class Limit:
    """From ``start_s`` to ``end_s`` steps run at ``speed_fraction`` of their full speed; in an outage none do, the gang is gone and its nodes idle.

    ``dark``: begin and end, s, of what of an outage does not even leave the site's idle draw, so that all is off.
    """

    start_s: float
    end_s: float
    speed_fraction: float
    is_outage: bool = False
    dark: tuple[tuple[float, float], ...] = ()


class Table(NamedTuple):
    """Limits by column: begin, end and a stepping node's watts of each, no number in an outage; begin and end of what is dark."""

    start_s: np.ndarray
    end_s: np.ndarray
    step_w: np.ndarray
    dark_start_s: np.ndarray
    dark_end_s: np.ndarray

    @property
    def stops(self) -> tuple[np.ndarray, np.ndarray]:
        is_stop = np.isnan(self.step_w)
        return self.start_s[is_stop], self.end_s[is_stop]

    @property
    def darks(self) -> tuple[np.ndarray, np.ndarray]:
        return self.dark_start_s, self.dark_end_s


@dataclass(frozen=True, kw_only=True)
class Swing:
    """What each step does to the grid: the gang's nodes go up and down together, by ``nodes_w`` after storage in their power supplies. ``left_w``: of it
    after the site's battery.

    ``lost_w``: the battery's losses, mean. A battery smooths what its power and its store can take of the step.
    """

    nodes_w: float
    left_w: float
    lost_w: float
    above_mean_w: float

    @classmethod
    def of(cls, machine: Machine, load: Load, watts: PhaseWatts, power: PowerScenario) -> Swing:
        shares, nodes = StepShares.of(load.parts_s), load.num_job_chips / machine.node.num_chips
        if not 0 < shares.compute_fraction < 1:
            return cls(nodes_w=0.0, left_w=0.0, lost_w=0.0, above_mean_w=0.0)
        nodes_w = (watts.compute_w - watts.communication_w) * nodes
        smoothed = power_figures("swing")["smoothed_fraction"].get(machine.node.chip.name, 0.0)
        kept_w = nodes_w * (1.0 - smoothed)
        # Above the mean the battery gives, below it takes: both sides must fit its power, one half-wave its store.
        half_wave_j = kept_w * shares.compute_fraction * shares.communication_fraction * load.step_s
        larger_side_w = kept_w * max(shares.compute_fraction, shares.communication_fraction)
        covered = min(1.0, (power.battery_w or 0.0) / larger_side_w, (power.battery_j or 0.0) / half_wave_j)
        lost_j = covered * half_wave_j * (1.0 / power_figures("battery")["round_trip_fraction"] - 1.0)
        left_w = kept_w * (1.0 - covered)
        return cls(nodes_w=kept_w, left_w=left_w, lost_w=lost_j / load.step_s, above_mean_w=left_w * shares.communication_fraction)


@dataclass(frozen=True, kw_only=True)
class PowerModel:
    """Watts of one machine under one workload and scenario.

    Nodes of the gang draw the step's mean while they step, and that of standing processes at saves and faults; spares, nodes in repair and unused ones draw
    their idle power, as the gang's do while the supply stops them; the network draws the same at all times. Nothing is drawn where the supply does not even
    cover that. The swing within a step is told apart; cooling does not follow it.
    """

    machine: Machine
    watts: PhaseWatts
    shares: StepShares
    climate: Climate
    swing: Swing
    money: MoneyModel
    power: PowerScenario
    num_job_nodes: float
    network_w: float
    contract_w: float
    clocks: np.ndarray
    speeds: np.ndarray
    step_w: np.ndarray  # of a node over a step, at each clock
    peak_w: np.ndarray  # the same with what is left of the swing above the mean
    known: dict[float, list[Limit]] = field(default_factory=dict)  # limits by horizon, once they were worked out, and their tables by identity
    tables: dict[int, Table] = field(default_factory=dict)

    @classmethod
    def of(cls, machine: Machine, workload: Load, scenario: Scenario) -> PowerModel | None:
        """None where the catalog does not know the nodes' power. A limit below the site's idle draw is a SpecError."""
        watts = node_watts(machine.node)
        if watts is None:
            return None
        shares, clocks, nodes = (
            StepShares.of(workload.parts_s),
            np.linspace(least_clock_fraction(), 1.0, _CLOCKS),
            workload.num_job_chips / machine.node.num_chips,
        )
        climate = Climate.of(scenario.power, site_pue(machine), scenario.horizon_s)
        full_w = full_load_site_w(machine, above_mean_degrees=float(scenario.power.outside_season_c + scenario.power.outside_swing_c))
        swing, dynamic = Swing.of(machine, workload, watts, scenario.power), clocks ** power_figures("clock")["exponent"]
        step_w = shares.mean_w(watts, clocks) + swing.lost_w / nodes * dynamic
        model = cls(
            machine=machine,
            watts=watts,
            shares=shares,
            climate=climate,
            swing=swing,
            money=MoneyModel.of(machine, scenario.money, workload.num_job_chips),
            power=scenario.power,
            num_job_nodes=nodes,
            network_w=network_w(machine),
            contract_w=scenario.power.limit_w or full_w or 0.0,
            clocks=clocks,
            speeds=shares.speed(clocks),
            step_w=step_w,
            peak_w=step_w + swing.above_mean_w / nodes * dynamic,
        )
        model._check()
        return model

    def _check(self) -> None:
        """Against the hottest hour: a limit that idle nodes keep on average only is none that they keep."""
        hottest = float(self.climate.highest[-1])
        limit_w, idle_w, least_w = self.power.limit_w, self._site_w(self.watts.idle_w, hottest), self._site_w(float(self.peak_w[0]), hottest)
        if limit_w is not None and limit_w < idle_w:
            said = f"{self.machine.num_nodes:,} nodes and the network draw that much idle, cooling in the hottest hour included"
            problem = Problem(
                path="power.limit_w",
                value=format_quantity(limit_w, "W"),
                rule=f"is below the site's idle draw of {format_quantity(idle_w, 'W')}: {said}",
                hint=f"allow at least {format_quantity(_rounded_up(least_w), 'W')} so that chips run at their lowest clock",
            )
            raise SpecError("scenario", [problem])

    def _site_w(self, job_node_w: Any, pue: float) -> Any:
        """At the grid, with each of the gang's nodes drawing so much and all others idle."""
        others = self.machine.num_nodes - self.num_job_nodes
        return (job_node_w * self.num_job_nodes + self.watts.idle_w * others + self.network_w) * pue

    def site_w(
        self,
        time_s: np.ndarray,
        stepping: np.ndarray,
        standing: np.ndarray,
        spare: np.ndarray,
        repair: np.ndarray,
        speed: np.ndarray | float = 1.0,
        *,
        saving_fraction: np.ndarray | float = 0.0,
        stopped_fraction: np.ndarray | float = 0.0,
        dark_fraction: np.ndarray | float = 0.0,
    ) -> np.ndarray:
        """Mean site power of equal bins around ``time_s``, cooling included; the others: mean numbers of nodes, and the steps' speed, of each bin.

        ``saving_fraction``: of the stepping nodes' time, at which they stand still for a save. ``stopped_fraction``, ``dark_fraction``: of the bin, as
        ``halted`` says. Nodes that none of the four counts idle. The sum times the bin is the bill's ``site_j``.
        """
        bin_s = float(time_s[1] - time_s[0]) if len(time_s) > 1 else 2.0 * float(time_s[0])
        idle_w = self.watts.idle_w
        working_w = self._stepping_w(speed) * (1.0 - saving_fraction) + self.watts.waiting_w * saving_fraction
        waiting = standing - np.minimum(standing, self._num_gang * np.asarray(stopped_fraction))
        busy_w = stepping * (working_w - idle_w) + waiting * (self.watts.waiting_w - idle_w)
        return (busy_w + self._idle_it_w * (1.0 - np.asarray(dark_fraction))) * self.climate.mean(time_s - bin_s / 2, time_s + bin_s / 2)

    @property
    def _num_gang(self) -> int:
        return math.ceil(self.num_job_nodes)

    @property
    def _idle_it_w(self) -> float:
        return self.machine.num_nodes * self.watts.idle_w + self.network_w

    def halted(self, limits: Sequence[Limit], edges_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each bin between ``edges_s``, the part in which the supply stops the job, and that in which all is off."""
        table = self._table(limits)
        stopped, dark = (np.diff(_covered_s(spans, edges_s)) / np.diff(edges_s) for spans in (table.stops, table.darks))
        return stopped, dark

    def _stepping_w(self, speed: np.ndarray | float) -> np.ndarray:
        return np.interp(speed, self.speeds, self.step_w)

    def bill(
        self,
        *,
        wall_s: float,
        tokens: float,
        goodput_s: float,
        node_s: Mapping[NodeState, float],
        stepping_s: float,
        saving_s: float,
        course_site_w: Sequence[float] | np.ndarray | None = None,
        limits: Sequence[Limit] = (),
    ) -> Bill:
        """Energy, carbon and money. WORKING node-seconds are those of ``stepping_s`` and ``saving_s`` together; ``limits``: under which they ran, steps
        taken to be spread evenly. The course, where there is one, gives the site's energy and peak; else the mean PUE of the time does."""
        table, pue_s = self._table(limits), float(self.climate.until(wall_s))
        (stopped_s, stopped_pue_s), (dark_s, dark_pue_s) = (self._spent_in(spans, wall_s) for spans in (table.stops, table.darks))
        busy_j = self._busy_j(node_s, stepping_s, saving_s, self._step_w(table, wall_s), stopped_s)
        it_j = self._idle_it_w * (wall_s - dark_s) + busy_j
        runs_s = wall_s - stopped_s
        site_j = self._idle_it_w * (pue_s - dark_pue_s) + (busy_j * (pue_s - stopped_pue_s) / runs_s if runs_s > 0 else 0.0)
        peak_w = min(self.contract_w, self._peak_node_w(node_s, stepping_s, stopped_s) * self.climate.hottest(wall_s)) if dark_s < wall_s else 0.0
        if course_site_w is not None and len(course_site_w):
            site_j = float(np.mean(course_site_w)) * wall_s
            highest_w = float(np.max(course_site_w))
            peak_w = min(highest_w + (self.swing.above_mean_w if stepping_s else 0.0), max(highest_w, self.contract_w))
        carbon = self.machine.site.carbon_kg_co2e_per_j if self.machine.site else None
        return Bill(
            it_j=it_j,
            site_j=site_j,
            mean_w=site_j / wall_s if wall_s else 0.0,
            peak_w=peak_w,
            swing_w=self.swing.nodes_w,
            ramp_w_per_s=self.swing.left_w / power_figures("swing")["ramp_s"],
            carbon_kg_co2e=carbon.value * site_j if carbon else None,
            **self.money.costs(wall_s=wall_s, tokens=tokens, site_j=site_j),
        )

    def _busy_j(self, node_s: Mapping[NodeState, float], stepping_s: float, saving_s: float, step_w: float, stopped_s: float) -> float:
        """What the gang draws above idle; while the supply stops it, it has no more than that."""
        waiting_w, idle_w, busy_s = self.watts.waiting_w, self.watts.idle_w, stepping_s + saving_s
        working_w = (stepping_s * step_w + saving_s * waiting_w) / busy_s if busy_s else waiting_w
        return node_s.get(NodeState.WORKING, 0.0) * (working_w - idle_w) + self._waiting_node_s(node_s, stopped_s) * (waiting_w - idle_w)

    def _waiting_node_s(self, node_s: Mapping[NodeState, float], stopped_s: float) -> float:
        """Node-seconds at which the gang stands and is not stopped by the supply."""
        return max(0.0, node_s.get(NodeState.STANDING, 0.0) - self._num_gang * stopped_s)

    def _peak_node_w(self, node_s: Mapping[NodeState, float], stepping_s: float, stopped_s: float) -> float:
        """Without cooling, of the most that the gang did: step, stand, or idle."""
        stands = self._waiting_node_s(node_s, stopped_s) > 0
        return float(self._site_w(float(self.peak_w[-1]) if stepping_s else self.watts.waiting_w if stands else self.watts.idle_w, 1.0))

    def _spent_in(self, spans: tuple[np.ndarray, np.ndarray], wall_s: float) -> tuple[float, float]:
        """Seconds of the spans up to ``wall_s``, and PUE times seconds."""
        begins, ends = (np.minimum(each, wall_s) for each in spans)
        return float((ends - begins).sum()), float((self.climate.until(ends) - self.climate.until(begins)).sum())

    def _step_w(self, table: Table, wall_s: float) -> float:
        """Of a node that steps, the mean over all limits, of steps spread evenly over what was no outage."""
        spans_s = np.clip(np.minimum(table.end_s, wall_s) - table.start_s, 0.0, None)
        stopped_s = float(spans_s[np.isnan(table.step_w)].sum())
        if wall_s <= stopped_s:
            return float(self.step_w[-1])
        saved_js = float(np.nansum(spans_s * (self.step_w[-1] - table.step_w)))
        return float(self.step_w[-1]) - saved_js / (wall_s - stopped_s)

    def _table(self, limits: Sequence[Limit]) -> Table:
        """By identity, where they are those that every replica meets."""
        found = self.tables.get(id(limits))
        if found is not None:
            return found
        start_s, end_s, speeds = np.array([(limit.start_s, limit.end_s, limit.speed_fraction) for limit in limits]).reshape(-1, 3).T
        dark_start_s, dark_end_s = np.array([span for limit in limits for span in limit.dark]).reshape(-1, 2).T
        return Table(start_s, end_s, np.where(speeds > 0, self._stepping_w(speeds), np.nan), dark_start_s, dark_end_s)

    def limits(self, horizon_s: float, rng: np.random.Generator) -> list[Limit]:
        """When the job must run slower or not at all, in order and apart: the cap against the hours' cooling, and grid events, some of them random.

        The same ``policy.power.decide`` as on a real site says what is done; it sees meters and the battery's charge, not how long an event lasts.
        """
        random = self._random_events(horizon_s, rng)
        if not random:
            return self._known_limits(horizon_s)
        return list(_joined(self._played(horizon_s, [*self.power.events, *random], self._short_hours(horizon_s))))

    def _known_limits(self, horizon_s: float) -> list[Limit]:
        """What every replica meets: of the cap and of the events that the scenario names."""
        if horizon_s not in self.known:
            hours = self._short_hours(horizon_s)
            found = list(_joined(self._played(horizon_s, self.power.events, hours))) if self.power.events or len(hours) else []
            self.known[horizon_s] = found
            if found:
                self.tables[id(found)] = self._table(found)
        return self.known[horizon_s]

    def _random_events(self, horizon_s: float, rng: np.random.Generator) -> list[GridEvent]:
        if not self.power.random_events_per_year or self.power.random_event is None:
            return []
        number = int(rng.poisson(self.power.random_events_per_year * horizon_s / YEAR_S))
        starts = np.sort(rng.uniform(0.0, horizon_s, number))
        lengths = [max(float(length), 1e-3) for length in draw(self.power.random_event, rng, number)]
        fraction = self.power.random_available_fraction
        return [GridEvent(at_s=float(at), duration_s=length, available_fraction=fraction) for at, length in zip(starts, lengths, strict=True)]

    def _short_hours(self, horizon_s: float) -> np.ndarray:
        """Hours in which the contract does not cover the full speed."""
        pue = self.climate.hour_pue[: math.ceil(horizon_s / HOUR_S)]
        return np.flatnonzero(self._site_w(float(self.peak_w[-1]), 1.0) * pue > self.contract_w)

    def _played(self, horizon_s: float, events: Sequence[GridEvent], hours: np.ndarray) -> Iterator[Limit]:
        """One limit for each span of equal supply in which the job is slowed or stopped, the battery's charge carried from span to span."""
        charge_j = self.power.battery_j or 0.0
        for start_s, end_s, available in _supplied(events, _spans(horizon_s, events, hours)):
            available_w, pue, at_s = self.contract_w * available, self.climate.at(start_s), start_s
            is_dark = available_w < self._site_w(self.watts.idle_w, pue)
            while at_s < end_s - 1e-9:
                made = decide(self._state(available_w, pue, charge_j))
                lasts_s = charge_j / made.battery_w if made.battery_w > 0 else math.inf
                until_s = min(end_s, at_s + max(lasts_s, 1e-3))
                charge_j = self._charge_j(charge_j, made.battery_w * (until_s - at_s))
                if made.action in (Action.SLOW, Action.STOP):
                    speed = self._speed_within(made.draw_w, pue) if made.action is Action.SLOW else 0.0
                    dark = ((at_s, until_s),) if speed == 0.0 and is_dark else ()
                    yield Limit(start_s=at_s, end_s=until_s, speed_fraction=speed, is_outage=speed == 0.0, dark=dark)
                at_s = until_s

    def _charge_j(self, charge_j: float, given_j: float) -> float:
        """The battery's charge once it gave so much; below 0 it took that from the grid, less its losses."""
        full_j = self.power.battery_j or 0.0
        left_j = charge_j - (given_j if given_j > 0 else given_j * power_figures("battery")["round_trip_fraction"])
        return 0.0 if left_j < 1e-6 * full_j else min(full_j, left_j)

    def _state(self, available_w: float, pue: float, charge_j: float) -> PowerState:
        return PowerState(
            available_w=available_w,
            demand_w=self._site_w(float(self.peak_w[-1]), pue),
            least_w=self._site_w(float(self.peak_w[0]), pue),
            battery_w=self.power.battery_w or 0.0,
            battery_j=charge_j,
        )

    def _speed_within(self, draw_w: float, pue: float) -> float:
        """The highest speed, in hundredths, whose draw fits; the lowest clock's where none does by a hair."""
        speed = float(np.interp(draw_w, self._site_w(self.peak_w, pue), self.speeds))
        return max(math.floor(speed * _SPEED_STEPS + 1e-9) / _SPEED_STEPS, float(self.speeds[0]))


def _spans(horizon_s: float, events: Sequence[GridEvent], hours: np.ndarray) -> Iterator[tuple[float, float]]:
    """Times between which supply and cooling are the same. Where no hour is short, only events and the hours within and after them matter."""
    begins = np.array([event.at_s for event in events])
    ends = begins + np.array([event.duration_s for event in events])
    num_hours = math.ceil(horizon_s / HOUR_S)
    begun = np.zeros(num_hours + 1, dtype=int)
    for edges_s, number in ((begins, 1), (ends, -1)):
        np.add.at(begun, np.ceil(np.minimum(edges_s, horizon_s) / HOUR_S).astype(int), number)
    within = np.flatnonzero(np.cumsum(begun) > 0)
    edges = np.unique(np.concatenate([[0.0, horizon_s], begins, ends, HOUR_S * within, HOUR_S * hours, HOUR_S * (hours + 1)]))
    yield from pairwise(edges[edges <= horizon_s].tolist())


def _supplied(events: Sequence[GridEvent], spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float, float]]:
    """Each span with what the grid leaves of the contract: the least of any event under way."""
    coming = sorted(events, key=lambda event: -event.at_s)
    under_way: list[tuple[float, float]] = []
    for start_s, end_s in spans:
        while coming and coming[-1].at_s <= start_s:
            event = coming.pop()
            heappush(under_way, (event.available_fraction, event.at_s + event.duration_s))
        while under_way and under_way[0][1] <= start_s:
            heappop(under_way)
        yield start_s, end_s, under_way[0][0] if under_way else 1.0


def _joined(limits: Iterator[Limit]) -> Iterator[Limit]:
    """Neighbours of one speed as one."""
    held: Limit | None = None
    for limit in limits:
        if held and held.end_s == limit.start_s and (held.speed_fraction, held.is_outage) == (limit.speed_fraction, limit.is_outage):
            held = replace(held, end_s=limit.end_s, dark=_chained(held.dark, limit.dark))
            continue
        if held:
            yield held
        held = limit
    if held:
        yield held


def _chained(before: tuple[tuple[float, float], ...], after: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """Spans one after the other, those that touch as one."""
    if before and after and before[-1][1] == after[0][0]:
        return (*before[:-1], (before[-1][0], after[0][1]), *after[1:])
    return before + after


def _covered_s(spans: tuple[np.ndarray, np.ndarray], until_s: np.ndarray) -> np.ndarray:
    """Seconds of spans, in order and apart, up to each of ``until_s``."""
    begins, ends = spans
    if not len(begins):
        return np.zeros(len(until_s))
    edges_s = np.stack([begins, ends], axis=1).ravel()
    return np.interp(until_s, edges_s, np.cumsum(np.diff(edges_s, prepend=edges_s[0]) * (np.arange(len(edges_s)) % 2)))


def _rounded_up(value: float) -> float:
    """To the three digits that are shown, so that what is told is enough."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / unit) * unit
