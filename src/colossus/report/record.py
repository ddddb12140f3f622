"""The Report: what a run, real or simulated, came to. JSON-able; dump then load is identity.

``time_s`` in a report is run time: wall time since the run began, with the pauses between its sessions cut out.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.causes import Cause
from colossus.spec.machine import How


class Status(StrEnum):
    """How the log ends; UNFINISHED is a run still going on, or one that was killed with its supervisor."""

    DONE = "done"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    UNFINISHED = "unfinished"
    EMPTY = "empty"


class Curve(Spec):
    """One value a step, each step once; None where the value was not finite."""

    steps: list[int] = Field(default_factory=list)
    values: list[float | None] = Field(default_factory=list)

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None


class FaultRecord(Spec):
    """One fault as the supervisor saw it; ``injected`` when it was made on purpose. ``node`` and ``component``: where a simulation tells them."""

    time_s: float
    cause: str
    rank: int | None = None
    detail: str = ""
    detected_s: float = 0.0
    injected: bool = False
    node: int | None = None
    component: str | None = None


class Incident(Spec):
    """Training stood still: everything from a fault to the next step, and what it cost.

    ``finished`` is false when no step followed. The parts of the downtime are those that the supervisor measured;
    None where the log ends before it told them.
    """

    time_s: float
    faults: list[FaultRecord]
    actions: list[str] = Field(default_factory=list)
    reason: str = ""
    how: str | None = None
    num_workers: int | None = None
    from_step: int
    to_step: int | None = None
    lost_steps: int = 0
    lost_s: float = 0.0
    downtime_s: float | None = None
    detect_s: float | None = None
    start_s: float | None = None
    restore_s: float | None = None
    compile_s: float | None = None
    wait_s: float | None = None
    first_step_s: float | None = None
    compilations: int | None = None
    finished: bool = False

    @property
    def root(self) -> FaultRecord:
        """The fault that began it: the injected one, else the first that is not a peer's echo."""
        injected = [fault for fault in self.faults if fault.injected]
        own = [fault for fault in self.faults if not fault.cause.startswith("peer")]
        return (injected or own or self.faults)[0]


class BadStep(Spec):
    """A step whose update was skipped."""

    step: int
    time_s: float
    reason: str
    loss: float | None = None


class Rollback(Spec):
    """The run went back to a good checkpoint by its own decision."""

    time_s: float
    from_step: int
    to_step: int
    reason: str


class Pause(Spec):
    """Time between two sessions of one run: not its wall time."""

    at_s: float
    duration_s: float


class Attempt(Spec):
    """The gang was formed at ``time_s``, with so many workers."""

    time_s: float
    attempt: int
    num_workers: int
    how: str


class CheckpointRecord(Spec):
    """Checkpoints by what became of them; ``num_in_spans``: those of which a simulation tells only how many. ``blocked_fraction`` is the share of the saves that steps stood still."""

    num_saved: int = 0
    num_in_ram: int = 0
    num_in_spans: int = 0
    num_failed: int = 0
    num_rejected: int = 0
    saved_steps: list[int] = Field(default_factory=list)
    saved_times_s: list[float] = Field(default_factory=list)
    mean_size_bytes: float | None = None
    mean_duration_s: float | None = None
    blocked_s: float = 0.0
    blocked_fraction: float | None = None
    interval_steps: int | None = None
    problems: list[str] = Field(default_factory=list)


class DataRecord(Spec):
    """The corpus as trained on."""

    num_tokens: int
    num_validation_tokens: int
    vocab_size: int
    cached: bool
    duration_s: float


class Timeline(Spec):
    """Run time in equal bins: each cause's share of every bin, and steps done per second in it."""

    bin_s: float = 0.0
    shares: dict[Cause, list[float]] = Field(default_factory=dict)
    steps_per_s: list[float] = Field(default_factory=list)


class KindTotal(Spec):
    """Events of one kind: how many, the time they tell of where they tell one, and of spans the steps in them."""

    num_events: int
    total_s: float | None = None
    num_steps: int | None = None


class PlannedRow(Spec):
    """One figure as it was planned and as it was measured. ``lower`` and ``upper``: where the plan expects nine runs in ten; ``unit`` "": a fraction."""

    name: str
    unit: Literal["s", "B", "tokens/s", ""]
    planned: float | None = None
    measured: float | None = None
    lower: float | None = None
    upper: float | None = None
    is_part: bool = False

    @property
    def ratio(self) -> float | None:
        """Measured over planned."""
        return self.measured / self.planned if self.planned and self.measured is not None else None

    @property
    def is_as_planned(self) -> bool:
        """Whether the measurement lies where the plan expects it; true where the plan gives no interval."""
        return self.measured is None or self.lower is None or self.upper is None or self.lower <= self.measured <= self.upper


class Report(Spec):
    """What a run came to. ``goodput_s`` and the values of ``badput_s`` sum to ``wall_s``, to the microsecond."""

    schema_version: Literal[1] = Field(1, alias="schema")
    how: How = How.MEASURED
    name: str = ""
    status: Status
    status_reason: str = ""
    platform: str | None = None
    layout: dict[str, Any] | str | None = None
    num_workers: int | None = None
    attempts: list[Attempt] = Field(default_factory=list)
    started_at_s: float = 0.0

    steps: int = 0
    num_steps: int | None = None
    tokens: int | None = None
    tokens_per_step: int | None = None
    data: DataRecord | None = None

    loss: Curve = Curve()
    validation: Curve = Curve()
    final_loss: float | None = None
    final_validation_loss: float | None = None
    final_perplexity: float | None = None
    final_metrics: dict[str, Any] = Field(default_factory=dict)

    wall_s: float = 0.0
    goodput_s: float = 0.0
    goodput_fraction: float = 0.0
    badput_s: dict[Cause, float] = Field(default_factory=dict)
    pauses: list[Pause] = Field(default_factory=list)
    timeline: Timeline = Timeline()

    median_step_s: float | None = None
    tokens_per_s: float | None = None
    overall_tokens_per_s: float | None = None
    model_flop_per_token: float | None = None
    peak_flop_per_s: float | None = None
    peak_how: str | None = None
    mfu_fraction: float | None = None
    overall_mfu_fraction: float | None = None
    memory_peak_bytes: float | None = None

    incidents: list[Incident] = Field(default_factory=list)
    bad_steps: list[BadStep] = Field(default_factory=list)
    rollbacks: list[Rollback] = Field(default_factory=list)
    checkpoints: CheckpointRecord = CheckpointRecord()
    planned: list[PlannedRow] = Field(default_factory=list)
    planned_source: str = ""
    replayed_steps: int = 0
    replay_mismatches: list[int] = Field(default_factory=list)
    kinds: dict[str, KindTotal] = Field(default_factory=dict)

    @property
    def num_faults(self) -> int:
        return sum(len(incident.faults) for incident in self.incidents)

    @property
    def lost_steps(self) -> int:
        return sum(incident.lost_steps for incident in self.incidents)
