"""What may happen in a simulation and what is done about it: faults, recovery, checkpoints, stragglers, power, money.

Every figure has its default, with source, in ``catalog/scenarios/default.toml``; a scenario names what differs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.faults import Duration, FaultProfile, Share
from colossus.spec.units import BytesPerS, Joules, Seconds, Watts

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Recovery(StrEnum):
    """Where a lost node's place is filled from: a spare that has everything started (hot), a spare that starts (cold), nowhere until it is
    mended (wait), or the gang goes on without it until then (elastic: spares first, then smaller)."""

    HOT = "hot"
    COLD = "cold"
    WAIT = "wait"
    ELASTIC = "elastic"


class RecoveryScenario(Spec):
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
    drain_window_s: Annotated[Seconds, Field(gt=0)]
    drain_repair: Duration
    evict_slow: bool
    evict_detect: Duration
    sdc_check_interval_s: Annotated[Seconds, Field(gt=0)] | None = None
    sdc_check_s: Annotated[Seconds, Field(ge=0)]


class Tier(StrEnum):
    """Where copies of the state in memory are: nowhere, in the node's own memory (lost with it), or in another node's too."""

    NONE = "none"
    OWN = "own"
    PEER = "peer"


class CheckpointScenario(Spec):
    """``interval_s``: "daly" leaves it to policy.checkpoint with the failures' expected rate, "adaptive" with the rate seen so far; None keeps none.

    ``state_bytes_per_parameter``: weights, master weights and optimizer. ``storage_bytes_per_s``: what the site's storage takes and gives, all nodes
    together; ``storage_bytes_per_s_per_node``: what one node moves at most. ``blocked_fraction``: of a save's time, how long steps stand still.
    ``memory_interval_s`` None: policy.checkpoint's. ``memory_bytes_per_s_per_node``: copying the state into memory (and to the peer).
    """

    interval_s: Annotated[Seconds, Field(gt=0)] | Literal["daly", "adaptive"] | None
    state_bytes_per_parameter: Positive
    storage_bytes_per_s: Annotated[BytesPerS, Field(gt=0)]
    storage_bytes_per_s_per_node: Annotated[BytesPerS, Field(gt=0)]
    blocked_fraction: Share
    memory: Tier
    memory_interval_s: Annotated[Seconds, Field(gt=0)] | None = None
    memory_bytes_per_s_per_node: Annotated[BytesPerS, Field(gt=0)]


class StragglerScenario(Spec):
    """What makes a synchronous step longer than its estimate. ``jitter_fraction``: standard deviation of one node's step time over its mean; the
    slowest of N adds sqrt(2 ln N) of it. ``congestion_fraction``: of communication time, lost to other traffic on average.
    ``diurnal_fraction``: how much longer steps are at the hottest hour than at the coolest.
    """

    jitter_fraction: Share
    congestion_fraction: Share
    diurnal_fraction: Share


class GridEvent(Spec):
    """At ``at_s`` the grid gives only ``available_fraction`` of the site's contract for ``duration_s``; 0 is a blackout, milliseconds a dip."""

    at_s: Annotated[Seconds, Field(ge=0)]
    duration_s: Annotated[Seconds, Field(gt=0)]
    available_fraction: Share


class PowerScenario(Spec):
    """``limit_w``: what the site may draw, cooling included; None: as much as it needs. ``battery_w`` and ``battery_j``: what smooths swings and bridges dips.

    ``random_events_per_year``: grid events beside those named, each of ``random_event`` s and down to ``random_available_fraction``.
    ``outside_mean_c``, ``outside_swing_c`` (day to night, half of it), ``outside_season_c`` (summer to winter, half of it): degrees Celsius for cooling.
    """

    limit_w: Annotated[Watts, Field(gt=0)] | None = None
    battery_w: Annotated[Watts, Field(ge=0)] | None = None
    battery_j: Annotated[Joules, Field(ge=0)] | None = None
    events: list[GridEvent] = Field(default_factory=list)
    random_events_per_year: Annotated[float, Field(ge=0)] = 0.0
    random_event: Duration | None = None
    random_available_fraction: Share = 0.0
    outside_mean_c: float
    outside_swing_c: Annotated[float, Field(ge=0)]
    outside_season_c: Annotated[float, Field(ge=0)]


class MoneyScenario(Spec):
    """``depreciation_s``: straight line over so long, for chips and for the building apart. ``staff_usd_per_s_per_node``, ``maintenance_fraction`` of the
    purchase a year. ``network_fraction``: what the network costs over what chips in their servers do. What those and energy cost stands in the machine's site."""

    depreciation_s: Annotated[Seconds, Field(gt=0)]
    building_depreciation_s: Annotated[Seconds, Field(gt=0)]
    building_usd_per_w: Annotated[float, Field(ge=0)]
    staff_usd_per_s_per_node: Annotated[float, Field(ge=0)]
    maintenance_fraction: Share
    network_fraction: Share = 0.0


class Injection(Spec):
    """Faults made on purpose, as a benchmark's protocol asks: one every ``every`` (its spread is the protocol's), of one class of the profile."""

    every: Duration
    cause: str


class Scenario(Spec):
    """``horizon_s``: how long at most; the job may end before. ``fault_factor`` times the profile's rates. ``faults``: a profile of the
    catalog's reliability, "none", or a whole one in the file. ``age_s``: how old the machine is when the job begins. ``num_nodes_per_rack``,
    ``num_nodes_per_pod`` None: a scale-up domain of several nodes of the machine, a pod of its network; where it has none, as the profile's counts are of.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    name: str
    source: str = ""
    date: str = ""
    horizon_s: Annotated[Seconds, Field(gt=0)]
    seed: Count = 0
    faults: str | FaultProfile
    fault_factor: Annotated[float, Field(ge=0)] = 1.0
    age_s: Annotated[Seconds, Field(ge=0)] = 0.0
    num_nodes_per_rack: Annotated[int, Field(ge=1)] | None = None
    num_nodes_per_pod: Annotated[int, Field(ge=1)] | None = None
    injections: list[Injection] = Field(default_factory=list)
    recovery: RecoveryScenario
    checkpoint: CheckpointScenario
    stragglers: StragglerScenario
    power: PowerScenario
    money: MoneyScenario
