"""The site's power in a simulation: what it draws, when a cap or the grid slows or stops the job, and the bill."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

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
    """From ``start_s`` to ``end_s`` steps run at ``speed_fraction`` of their full speed; in an outage none do and the gang is gone."""

    start_s: float
    end_s: float
    speed_fraction: float
    is_outage: bool = False


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
    their idle power; the network draws the same at all times. The swing within a step is told apart; cooling does not follow it.
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
    tables: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)

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
        limit_w, idle_w = self.power.limit_w, self._site_w(self.watts.idle_w, self.climate.pue)
        if limit_w is not None and limit_w < idle_w:
            said = f"{self.machine.num_nodes:,} nodes and the network draw that much idle, cooling included"
            problem = Problem(
                path="power.limit_w",
                value=format_quantity(limit_w, "W"),
                rule=f"is below the site's idle draw of {format_quantity(idle_w, 'W')}: {said}",
                hint=f"allow at least {format_quantity(self._site_w(float(self.peak_w[0]), self.climate.pue), 'W')} so that chips run at their lowest clock",
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
    ) -> np.ndarray:
        """Mean site power of equal bins around ``time_s``, cooling included; the others: mean numbers of nodes, and the steps' speed, of each bin.

        ``saving_fraction``: of the stepping nodes' time, at which they stand still for a save. Nodes that none of the four counts idle. The sum times the
        bin is the bill's ``site_j``.
        """
        bin_s = float(time_s[1] - time_s[0]) if len(time_s) > 1 else 2.0 * float(time_s[0])
        others = self.machine.num_nodes - stepping - standing - spare - repair
        working_w = self._stepping_w(speed) * (1.0 - saving_fraction) + self.watts.waiting_w * saving_fraction
        nodes_w = stepping * working_w + standing * self.watts.waiting_w + (spare + repair + others) * self.watts.idle_w
        return (nodes_w + self.network_w) * self.climate.mean(time_s - bin_s / 2, time_s + bin_s / 2)

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
        it_j = self._nodes_j(node_s, stepping_s, saving_s, self._step_w(limits, wall_s)) + self.network_w * wall_s
        it_j += max(0.0, self.machine.num_nodes * wall_s - sum(node_s.values())) * self.watts.idle_w
        peak_w = min(self.contract_w, self._site_w(float(self.peak_w[-1]), self.climate.hottest(wall_s))) if stepping_s else 0.0
        site_j = it_j * float(self.climate.until(wall_s)) / wall_s if wall_s else 0.0
        if course_site_w is not None and len(course_site_w):
            site_j = float(np.mean(course_site_w)) * wall_s
            highest_w = float(np.max(course_site_w))
            peak_w = min(highest_w + (self.swing.above_mean_w if stepping_s else 0.0), max(highest_w, self.contract_w))
        carbon = self.machine.site.carbon_kg_co2e_per_j if self.machine.site else None
        return Bill(
            it_j=it_j,
            site_j=site_j,
            mean_w=site_j / wall_s if wall_s else 0.0,
            peak_w=max(peak_w, site_j / wall_s if wall_s else 0.0),
            swing_w=self.swing.nodes_w,
            ramp_w_per_s=self.swing.left_w / power_figures("swing")["ramp_s"],
            carbon_kg_co2e=carbon.value * site_j if carbon else None,
            **self.money.costs(wall_s=wall_s, tokens=tokens, site_j=site_j),
        )

    def _nodes_j(self, node_s: Mapping[NodeState, float], stepping_s: float, saving_s: float, step_w: float) -> float:
        working, busy_s = node_s.get(NodeState.WORKING, 0.0), stepping_s + saving_s
        working_w = (stepping_s * step_w + saving_s * self.watts.waiting_w) / busy_s if busy_s else self.watts.waiting_w
        idle = sum(seconds for state, seconds in node_s.items() if state not in (NodeState.WORKING, NodeState.STANDING))
        return working * working_w + node_s.get(NodeState.STANDING, 0.0) * self.watts.waiting_w + idle * self.watts.idle_w

    def _step_w(self, limits: Sequence[Limit], wall_s: float) -> float:
        """Of a node that steps, the mean over all limits, of steps spread evenly over what was no outage."""
        if not len(limits):
            return float(self.step_w[-1])
        start_s, end_s, step_w = self.tables[id(limits)] if id(limits) in self.tables else self._table(limits)
        spans_s = np.clip(np.minimum(end_s, wall_s) - start_s, 0.0, None)
        stopped_s = float(spans_s[np.isnan(step_w)].sum())
        if wall_s <= stopped_s:
            return float(self.step_w[-1])
        saved_js = float(np.nansum(spans_s * (self.step_w[-1] - step_w)))
        return float(self.step_w[-1]) - saved_js / (wall_s - stopped_s)

    def _table(self, limits: Sequence[Limit]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Begin, end and a stepping node's watts of each limit; no number in an outage."""
        start_s, end_s, speeds = np.array([(limit.start_s, limit.end_s, limit.speed_fraction) for limit in limits]).T
        return start_s, end_s, np.where(speeds > 0, self._stepping_w(speeds), np.nan)

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
        for start_s, end_s in _spans(horizon_s, events, hours):
            available_w, pue, at_s = self.contract_w * _available(events, start_s), self.climate.at(start_s), start_s
            while at_s < end_s - 1e-9:
                made = decide(self._state(available_w, pue, charge_j))
                lasts_s = charge_j / made.battery_w if made.battery_w > 0 else math.inf
                until_s = min(end_s, at_s + max(lasts_s, 1e-3))
                charge_j = self._charge_j(charge_j, made.battery_w * (until_s - at_s))
                if made.action in (Action.SLOW, Action.STOP):
                    speed = self._speed_within(made.draw_w, pue) if made.action is Action.SLOW else 0.0
                    yield Limit(start_s=at_s, end_s=until_s, speed_fraction=speed, is_outage=speed == 0.0)
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
    edges = {0.0, horizon_s}
    for event in events:
        edges |= {edge for edge in (event.at_s, event.at_s + event.duration_s) if 0 < edge < horizon_s}
        first, last = math.ceil(event.at_s / HOUR_S), math.ceil(min(event.at_s + event.duration_s, horizon_s) / HOUR_S)
        edges |= {float(hour * HOUR_S) for hour in range(first, last) if 0 < hour * HOUR_S < horizon_s}
    edges |= {edge for hour in hours.tolist() for edge in (hour * HOUR_S, (hour + 1) * HOUR_S) if 0 < edge < horizon_s}
    yield from pairwise(sorted(edges))


def _available(events: Sequence[GridEvent], time_s: float) -> float:
    """The least that any event under way leaves of the contract."""
    return min((event.available_fraction for event in events if event.at_s <= time_s < event.at_s + event.duration_s), default=1.0)


def _joined(limits: Iterator[Limit]) -> Iterator[Limit]:
    """Neighbours of one speed as one."""
    held: Limit | None = None
    for limit in limits:
        if held and held.end_s == limit.start_s and (held.speed_fraction, held.is_outage) == (limit.speed_fraction, limit.is_outage):
            held = Limit(start_s=held.start_s, end_s=limit.end_s, speed_fraction=held.speed_fraction, is_outage=held.is_outage)
            continue
        if held:
            yield held
        held = limit
    if held:
        yield held
