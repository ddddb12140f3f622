"""What a simulation says: every figure simulated. One replica's totals, its course over time, its incidents; more replicas' totals beside them."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.causes import Cause
from colossus.spec.scenario import Scenario


class NodeState(StrEnum):
    """What a node is doing: part of the gang that steps, part of one that stands still, a spare at hand, in repair, or of no use to the job."""

    WORKING = "working"
    STANDING = "standing"
    SPARE = "spare"
    REPAIR = "repair"
    UNUSED = "unused"


class Bill(Spec):
    """Energy, carbon and money of one replica. ``parts_usd`` by class: chips, network, building, energy, staff, maintenance; they add up to ``total_usd``.

    ``it_j``: what nodes and network of the whole site drew; ``site_j``: with cooling and losses; watts and carbon are the site's too. Money is that of the nodes
    that the job holds, gang and spares, with their part of network and energy; ``rent_usd``: what renting the same nodes for the time would cost instead.
    ``swing_w``: from the lowest to the highest power within a step, of the gang's nodes together; ``stop_w``: between their stepping and their standing still;
    ``ramp_w_per_s``: the steepest change at the grid, of either, after batteries and power supplies; cooling does not follow it.
    """

    it_j: float
    site_j: float
    mean_w: float
    peak_w: float
    swing_w: float = 0.0
    stop_w: float = 0.0
    ramp_w_per_s: float = 0.0
    carbon_kg_co2e: float | None = None
    parts_usd: dict[str, float] = Field(default_factory=dict)
    total_usd: float | None = None
    usd_per_million_tokens: float | None = None
    lost_hour_usd: float | None = None
    rent_usd: float | None = None


class Tally(Spec):
    """Totals of one replica. ``goodput_s`` and the values of ``badput_s`` add up to ``wall_s``; those of ``node_s`` to nodes times ``wall_s``.

    ``interruptions``: faults that hit the gang, also while it stood still, orders and outages, by cause; ``faults``: all of the machine, spares included. ``done``: the job ended within
    the horizon, after ``wall_s``. ``time_to_train_s``: when it ended, or would at the pace it had; None where it made no progress.
    """

    seed: int
    wall_s: float
    done: bool
    goodput_s: float
    badput_s: dict[Cause, float]
    steps: int
    lost_steps: int
    tokens: float
    time_to_train_s: float | None
    interruptions: dict[str, int]
    faults: dict[str, int]
    num_checkpoints: int
    node_s: dict[NodeState, float]
    bill: Bill | None = None

    @property
    def goodput_fraction(self) -> float:
        return self.goodput_s / self.wall_s if self.wall_s else 0.0

    @property
    def num_interruptions(self) -> int:
        return sum(self.interruptions.values())


class Course(Spec):
    """A replica over time in equal bins of ``bin_s``: shares of each cause, mean number of nodes by state, site power, steps a second."""

    bin_s: float
    shares: dict[Cause, list[float]]
    nodes: dict[NodeState, list[float]]
    site_w: list[float]
    steps_per_s: list[float]


class SimulatedIncident(Spec):
    """One interruption: what, where, what was done, and how long each part of the standstill took."""

    time_s: float
    cause: str
    component: str
    effect: str
    node: int | None
    action: str
    reason: str
    lost_steps: int
    lost_s: float
    detect_s: float
    wait_s: float
    start_s: float
    restore_s: float
    compile_s: float
    source: str

    @property
    def downtime_s(self) -> float:
        return self.detect_s + self.wait_s + self.start_s + self.restore_s + self.compile_s


class Simulation(Spec):
    """``tallies[0]`` is the replica that ``course`` and ``incidents`` are of. ``step_s``: the estimate of a step; ``plan_s``: of the whole job, without any loss.

    ``num_nodes``: of the machine; ``num_job_nodes``: of them the job's gang. ``chosen``: what the scenario left open and what it came to, in words.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    name: str
    machine: str
    chip: str
    num_chips: int
    num_nodes: int
    num_job_chips: int
    num_job_nodes: int
    layout: str
    step_s: float
    parts_s: dict[str, float]
    tokens_per_step: int
    num_steps: int
    plan_s: float
    model_flop_per_token: float | None = None
    peak_flop_per_s: float | None = None
    scenario: Scenario
    fault_profile: str
    tallies: list[Tally]
    course: Course
    incidents: list[SimulatedIncident]
    chosen: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    @property
    def first(self) -> Tally:
        return self.tallies[0]
