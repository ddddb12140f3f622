"""What may happen in a simulation and what is done about it: faults, recovery, checkpoints, stragglers, power, money.

Every figure has its default, with source, in ``catalog/scenarios/default.toml``; a scenario names what differs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from colossus.spec.base import FiniteSpec
from colossus.spec.faults import Duration, FaultProfile, Share
from colossus.spec.units import BytesPerS, Joules, Lasting, Seconds, Watts, at_least, at_most, format_duration

Count = Annotated[int, Field(ge=0)]
Degrees = Annotated[float, Field(ge=0), at_most(60, "60 degrees either way, more than anywhere on Earth")]
Moving = Annotated[BytesPerS, at_least(1, "1 B/s, or nothing is ever saved")]
# What one replica draws at most, so that it fits into memory and ends within minutes.
MOST_EVENTS = 3_000_000
# Nodes of a simulation: a byte and a place in a list each.
MOST_NODES = 4_000_000
_YEAR_S = 365.25 * 86400.0


class Recovery(StrEnum):
    """Where a lost node's place is filled from: a spare that has everything started (hot), a spare that starts (cold), nowhere until it is
    mended (wait), or the gang goes on without it until then (elastic: spares first, then smaller)."""

    HOT = "hot"
    COLD = "cold"
    WAIT = "wait"
    ELASTIC = "elastic"


class RecoveryScenario(FiniteSpec):
    """``num_spares`` None: all nodes that the job does not use. Times: of the next gang, once it is known what to do.

    ``swap``: a hot spare takes a place and survivors reform; ``start``: all processes start anew and join; ``compile``: programs are ready;
    ``drain_after_faults``: a node with so many faults in ``drain_window_s`` is taken out for good repair (lemons); None: never.
    ``evict_slow``: a slow node is swapped out as soon as it is known, where that costs less than to wait for it.
    ``sdc_check_interval_s``: how often the job is held against itself for silent corruption; None: found by its detect time only.
    """

    kind: Recovery
    num_spares: Count | None = None
    swap: Duration
    start: Duration
    compile: Duration
    drain_after_faults: Annotated[int, Field(ge=1)] | None = None
    drain_window_s: Annotated[Lasting, Field(gt=0)]
    drain_repair: Duration
    evict_slow: bool
    evict_detect: Duration
    sdc_check_interval_s: Annotated[Lasting, Field(gt=0)] | None = None
    sdc_check_s: Annotated[Lasting, Field(ge=0)]


class Tier(StrEnum):
    """Where copies of the state in memory are: nowhere, in the node's own memory (lost with it), or in another node's too."""

    NONE = "none"
    OWN = "own"
    PEER = "peer"


class CheckpointScenario(FiniteSpec):
    """``interval_s``: "daly" leaves it to policy.checkpoint with the failures' expected rate, "adaptive" with the rate seen so far; None keeps none.

    ``state_bytes_per_parameter``: weights, master weights and optimizer. ``storage_bytes_per_s``: what the site's storage takes and gives, all nodes
    together; ``storage_bytes_per_s_per_node``: what one node moves at most. ``blocked_fraction``: of a save's time, how long steps stand still.
    ``memory_interval_s`` None: policy.checkpoint's. ``memory_bytes_per_s_per_node``: copying the state into memory (and to the peer).
    """

    interval_s: Annotated[Lasting, Field(gt=0)] | Literal["daly", "adaptive"] | None
    state_bytes_per_parameter: Annotated[float, Field(gt=0), at_most(1024, "1,024 bytes: weights and two moments in 64 bit are 24")]
    storage_bytes_per_s: Moving
    storage_bytes_per_s_per_node: Moving
    blocked_fraction: Share
    memory: Tier
    memory_interval_s: Annotated[Lasting, Field(gt=0)] | None = None
    memory_bytes_per_s_per_node: Moving


class StragglerScenario(FiniteSpec):
    """What makes a synchronous step longer than its estimate. ``jitter_fraction``: standard deviation of one node's step time over its mean; the
    slowest of N adds sqrt(2 ln N) of it. ``congestion_fraction``: of communication time, lost to other traffic on average.
    ``diurnal_fraction``: how much longer steps are at the hottest hour than at the coolest.
    """

    jitter_fraction: Share
    congestion_fraction: Share
    diurnal_fraction: Share


class GridEvent(FiniteSpec):
    """At ``at_s`` the grid gives only ``available_fraction`` of the site's contract for ``duration_s``; 0 is a blackout, milliseconds a dip."""

    at_s: Annotated[Seconds, Field(ge=0)]
    duration_s: Annotated[Seconds, Field(gt=0)]
    available_fraction: Share


class PowerScenario(FiniteSpec):
    """``limit_w``: what the site may draw, cooling included; None: as much as it needs. ``battery_w`` and ``battery_j``: what smooths swings and bridges dips.

    ``random_events_per_year``: grid events beside those named, each of ``random_event`` s and down to ``random_available_fraction``.
    ``outside_swing_c`` (day to night, half of it), ``outside_season_c`` (summer to winter, half of it): degrees Celsius about the year's mean, for cooling.
    """

    limit_w: Annotated[Watts, Field(gt=0)] | None = None
    battery_w: Annotated[Watts, Field(ge=0)] | None = None
    battery_j: Annotated[Joules, Field(ge=0)] | None = None
    events: list[GridEvent] = Field(default_factory=list)
    random_events_per_year: Annotated[float, Field(ge=0)] = 0.0
    random_event: Duration | None = None
    random_available_fraction: Share = 0.0
    outside_swing_c: Degrees
    outside_season_c: Degrees

    @model_validator(mode="after")
    def _says_how_long(self) -> Self:
        if self.random_events_per_year and self.random_event is None:
            raise ValueError(f'random_events_per_year {self.random_events_per_year:g} needs random_event, how long one lasts, e.g. random_event = "5 min"')
        return self


class MoneyScenario(FiniteSpec):
    """``depreciation_s``: straight line over so long, for chips and for the building apart. ``staff_usd_per_s_per_node``, ``maintenance_fraction`` of the
    purchase a year. ``network_fraction``: what the network costs over what chips in their servers do. What those and energy cost stands in the machine's site."""

    depreciation_s: Annotated[Lasting, at_least(86400, "a day")]
    building_depreciation_s: Annotated[Lasting, at_least(86400, "a day")]
    building_usd_per_w: Annotated[float, Field(ge=0)]
    staff_usd_per_s_per_node: Annotated[float, Field(ge=0)]
    maintenance_fraction: Share
    network_fraction: Share = 0.0


class Injection(FiniteSpec):
    """Faults made on purpose, as a benchmark's protocol asks: one every ``every`` (its spread is the protocol's), of one class of the profile."""

    every: Duration
    cause: str

    @model_validator(mode="after")
    def _takes_time(self) -> Self:
        if self.every.mean_s <= 0:
            raise ValueError(f'every {self.every.mean_s:g} s would be endlessly many; write a time above zero, e.g. every = "1 h"')
        return self


class Scenario(FiniteSpec):
    """``horizon_s``: how long at most; the job may end before. ``fault_factor`` times the profile's rates. ``faults``: a profile of the
    catalog's reliability, "none", or a whole one in the file. ``age_s``: how old the machine is when the job begins. ``num_nodes_per_rack``,
    ``num_nodes_per_pod`` None: a scale-up domain of several nodes of the machine, a pod of its network; where it has none, as the profile's counts are of.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    name: str
    source: str = ""
    date: str = ""
    horizon_s: Annotated[Lasting, Field(gt=0)]
    seed: Annotated[int, Field(ge=0), at_most(2**63 - 1, "2^63 - 1: streams of chance are numbered in 64 bit")] = 0
    faults: str | FaultProfile
    fault_factor: Annotated[float, Field(ge=0)] = 1.0
    age_s: Annotated[Lasting, Field(ge=0)] = 0.0
    num_nodes_per_rack: Annotated[int, Field(ge=1)] | None = None
    num_nodes_per_pod: Annotated[int, Field(ge=1)] | None = None
    injections: list[Injection] = Field(default_factory=list)
    recovery: RecoveryScenario
    checkpoint: CheckpointScenario
    stragglers: StragglerScenario
    power: PowerScenario
    money: MoneyScenario

    @model_validator(mode="after")
    def _can_be_played(self) -> Self:
        """What is asked for without regard to the machine; its faults are counted where it is known."""
        within = f"in {format_duration(self.horizon_s)}"
        for injection in self.injections:
            check_number(self.horizon_s / injection.every.mean_s, f"injections of {injection.cause} every {format_duration(injection.every.mean_s)} {within}")
        check_number(
            self.power.random_events_per_year * self.horizon_s / _YEAR_S, f"power.random_events_per_year {self.power.random_events_per_year:g} {within}"
        )
        return self


def check_number(expected: float, what: str) -> None:
    """A ValueError where more would happen than can be played."""
    if expected > MOST_EVENTS:
        raise ValueError(f"{what} are about {expected:,.3g}, more than the {MOST_EVENTS:,} that one replica plays; simulate a shorter time or let it be rarer")
