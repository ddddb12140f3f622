"""The faults of one replica, drawn before it is played: when, what, which node, and how long finding and mending takes.

Equal units are one cohort: the first fault of n exponential units comes at n times the rate, and falls on any of them. So cost grows with
faults, never with chips. A unit that is out of service when its turn comes is passed over, which leaves the others' rate as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from colossus.spec.faults import Effect, FaultClass, FaultProfile, Unit
from colossus.spec.machine import Machine
from colossus.spec.scenario import Injection, Scenario
from colossus.twin.streams import Streams, draw, draw_each, stream


class Fault(NamedTuple):
    """``kind``: place of its class. ``node``: of those the job may use. ``is_lemons``: what a lemon has beyond the others; none once it is mended.

    What is left to chance about it, each a number from 0 to 1 of its own: ``idle_luck`` whether hardware that does not step has it too, ``repair_luck`` whether
    its repair mends a lemon, ``check_luck`` how soon a check finds it.
    """

    time_s: float
    kind: int
    node: int
    detect_s: float
    repair_s: float
    is_lemons: bool
    idle_luck: float
    repair_luck: float
    check_luck: float


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """Where faults may fall: ``num_nodes`` that the job may use (gang and spares), ``num_gang_nodes`` of them in it at the start, and their groups."""

    num_nodes: int
    num_gang_nodes: int
    num_chips_per_node: int
    num_nodes_per_rack: int
    num_nodes_per_pod: int

    @classmethod
    def of(cls, machine: Machine, scenario: Scenario, profile: FaultProfile, *, num_nodes: int, num_gang_nodes: int) -> Grounds:
        """Racks and pods as the scenario says, else the machine (a domain of several nodes, a pod of its network), else as the profile's counts are of."""
        per_node = machine.node.num_chips
        domain = machine.scale_up.num_chips // per_node if machine.scale_up else 1
        pod = machine.scale_out.pod_chips if machine.scale_out else None
        return cls(
            num_nodes=num_nodes,
            num_gang_nodes=num_gang_nodes,
            num_chips_per_node=per_node,
            num_nodes_per_rack=scenario.num_nodes_per_rack or (domain if domain > 1 else profile.num_nodes_per_rack or 1),
            num_nodes_per_pod=scenario.num_nodes_per_pod or (pod // per_node if pod else profile.num_nodes_per_pod or machine.num_nodes),
        )

    def group(self, unit: Unit) -> int:
        """Nodes that one fault of ``unit`` takes."""
        return {Unit.NONE: 0, Unit.CHIP: 1, Unit.NODE: 1, Unit.RACK: self.num_nodes_per_rack, Unit.POD: self.num_nodes_per_pod, Unit.SITE: self.num_nodes}[unit]

    def num_units(self, each: FaultClass) -> float:
        """Units that may fail: of the gang alone where the fault is of the job (software, operators), of all nodes else."""
        nodes = self.num_gang_nodes if is_of_job(each) else self.num_nodes
        per = {
            Unit.CHIP: nodes * self.num_chips_per_node,
            Unit.NODE: nodes,
            Unit.RACK: nodes / self.num_nodes_per_rack,
            Unit.POD: nodes / self.num_nodes_per_pod,
        }
        return per.get(each.per, 1.0)


def is_of_job(each: FaultClass) -> bool:
    """Whether it strikes the job and no hardware."""
    return each.takes is Unit.NONE or each.effect is Effect.PLANNED


def rate_per_s(each: FaultClass, grounds: Grounds, scenario: Scenario) -> float:
    """Faults a second of a class over all its units: the mean of the horizon where it changes with age."""
    begin, end = _operational(each, scenario)
    return scenario.fault_factor * grounds.num_units(each) * (end - begin) / scenario.horizon_s


def _operational(each: FaultClass, scenario: Scenario) -> tuple[float, float]:
    """The hazard's integral of one unit, (age / mtbf)^shape, at the horizon's begin and end."""
    begin, end = scenario.age_s / each.mtbf_s, (scenario.age_s + scenario.horizon_s) / each.mtbf_s
    return (begin, end) if each.shape == 1 else (begin**each.shape, end**each.shape)


def lemon_nodes(profile: FaultProfile, grounds: Grounds, *, seed: int) -> np.ndarray:
    """Which nodes are lemons: each with the same chance, so that few nodes have none or one."""
    if not profile.lemon_fraction:
        return np.empty(0, dtype=np.int64)
    rng = stream(seed, "lemons")
    return rng.choice(grounds.num_nodes, rng.binomial(grounds.num_nodes, profile.lemon_fraction), replace=False)


class Faults(Sequence[Fault]):
    """Faults in order of time, by column; one is put together when it is asked for.

    ``lucks``: ``idle_luck`` of each, above 1 where nothing comes of it while the gang stands.
    """

    def __init__(self, columns: Sequence[list[Any]], is_never_idle: Sequence[bool]) -> None:
        self._columns = columns
        self.times_s: list[float] = columns[0]
        self.lucks = [2.0 if is_never_idle[kind] else luck for kind, luck in zip(columns[1], columns[Fault._fields.index("idle_luck")], strict=True)]

    def __len__(self) -> int:
        return len(self.times_s)

    def __getitem__(self, place: Any) -> Any:
        return Fault(*[column[place] for column in self._columns])


def draw_faults(profile: FaultProfile, scenario: Scenario, grounds: Grounds, *, seed: int) -> Faults:
    """Every fault within the horizon, in order of time; those of one class are the same whatever other classes there are."""
    lemons = lemon_nodes(profile, grounds, seed=seed)
    streams = Streams(seed)
    parts = [_of_class(profile, place, scenario, grounds, lemons, streams.at(each.cause)) for place, each in enumerate(profile.classes)]
    parts += [_injected(profile, each, scenario, grounds, streams.at(f"injection {number}")) for number, each in enumerate(scenario.injections)]
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return Faults([[]] * len(Fault._fields), [])
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return Faults([column[order].tolist() for column in columns], [is_of_job(each) for each in profile.classes])


Columns = tuple[np.ndarray, ...]


def _of_class(profile: FaultProfile, place: int, scenario: Scenario, grounds: Grounds, lemons: np.ndarray, rng: np.random.Generator) -> Columns:
    each = profile.classes[place]
    has_lemons = bool(profile.lemon_fraction) and each.takes in (Unit.CHIP, Unit.NODE) and not is_of_job(each)
    extra = (profile.lemon_factor - 1) * len(lemons) / grounds.num_nodes if has_lemons else 0.0  # of a good node's rate, beside what lemons share with all
    mean = 1 + (profile.lemon_factor - 1) * profile.lemon_fraction if has_lemons else 1.0
    times_s = _times(each, grounds.num_units(each) * scenario.fault_factor * (1 + extra) / mean, scenario, rng)
    number = len(times_s)
    nodes = rng.integers(grounds.num_gang_nodes if is_of_job(each) else grounds.num_nodes, size=number)
    is_lemons = np.zeros(number, dtype=bool)
    if extra:
        is_lemons = rng.random(number) < extra / (1 + extra)
        nodes[is_lemons] = lemons[rng.integers(len(lemons), size=int(is_lemons.sum()))]
    return _columns(profile, place, times_s, nodes, is_lemons, rng)


def _times(each: FaultClass, num_units: float, scenario: Scenario, rng: np.random.Generator) -> np.ndarray:
    """A Poisson process in time, of the hazard's integral n (age / mtbf)^shape: repairs bring a unit back as old as it was (minimal repair).

    By intervals of unit mean in operational time, so that more units or a higher factor give the same faults sooner.
    """
    if not num_units:
        return np.empty(0)
    begin, end = _operational(each, scenario)
    reached = rng.standard_exponential(int(1.05 * num_units * (end - begin)) + 8).cumsum()
    while reached[-1] < num_units * (end - begin):
        reached = np.concatenate([reached, reached[-1] + rng.standard_exponential(64).cumsum()])
    operational = reached[: reached.searchsorted(num_units * (end - begin))] / num_units + begin
    ages = operational if each.shape == 1 else operational ** (1 / each.shape)
    return ages * each.mtbf_s - scenario.age_s


def _injected(profile: FaultProfile, injection: Injection, scenario: Scenario, grounds: Grounds, rng: np.random.Generator) -> Columns:
    """Faults on purpose, one after the other."""
    place = place_of(profile.classes, injection.cause)
    number = ceil(scenario.horizon_s / injection.every.mean_s) + 10
    times_s = np.cumsum(draw(injection.every, rng, number))
    while times_s[-1] < scenario.horizon_s:
        times_s = np.concatenate([times_s, times_s[-1] + np.cumsum(draw(injection.every, rng, number))])
    times_s = times_s[: times_s.searchsorted(scenario.horizon_s)]
    nodes = rng.integers(grounds.num_gang_nodes, size=len(times_s))
    return _columns(profile, place, times_s, nodes, np.zeros(len(times_s), dtype=bool), rng)


def place_of(classes: Sequence[FaultClass], cause: str) -> int:
    return next(place for place, each in enumerate(classes) if each.cause == cause)


def _columns(profile: FaultProfile, place: int, times_s: np.ndarray, nodes: np.ndarray, is_lemons: np.ndarray, rng: np.random.Generator) -> Columns:
    each, number = profile.classes[place], len(times_s)
    if not number:
        return (times_s,) * len(Fault._fields)
    detect_s, diagnose_s, repair_s = draw_each((each.detect or profile.detect, each.diagnose or profile.diagnose, each.repair or profile.repair), rng, number)
    return times_s, np.full(number, place), nodes, detect_s + diagnose_s, repair_s, is_lemons, *rng.random((3, number))
