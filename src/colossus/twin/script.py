"""What a simulated gang does and how long each part takes: derived once from a job, its plan and a machine's times."""

from __future__ import annotations

from dataclasses import dataclass

from colossus.spec.job import TrainJob
from colossus.spec.times import RunTimes

# Causes of faults that the twin's engine can play.
FAULTS = ("kill", "exit", "hang", "peer", "stall", "permanent")


@dataclass(frozen=True, kw_only=True)
class Script:
    """``span_steps``: at most so many steps are told as one event; 1: each alone, as real workers do.

    ``halt_steps``: steps at which a span must end, since something is done on purpose there. ``ram_lost_by``: faults that take a node's memory along.
    ``profiles``: one step is profiled, as on a processor. ``compilations``: programs that a gang compiles anew, where it traces.
    """

    num_steps: int
    step_s: float
    times: RunTimes
    span_steps: int = 1
    halt_steps: tuple[int, ...] = ()
    evaluation_steps: int | None = None
    evaluates: bool = False
    disk_steps: int | None = None
    ram_steps: int | None = None
    has_ram: bool = True
    ram_lost_by: frozenset[str] = frozenset()
    profiles: bool = False
    parts_s: tuple[tuple[str, float], ...] = ()
    compilations: int = 0
    memory_bytes: int = 0

    @classmethod
    def of(
        cls, job: TrainJob, times: RunTimes, *, step_s: float, span_steps: int = 1, halt_steps: tuple[int, ...] = (), ram_lost_by: frozenset[str] = frozenset()
    ) -> Script:
        """A job's own script; ``step_s`` is the mean time of a step."""
        return cls(
            num_steps=job.num_steps,
            step_s=step_s,
            times=times,
            span_steps=span_steps,
            halt_steps=tuple(sorted(set(halt_steps))),
            evaluation_steps=job.evaluation.interval_steps,
            evaluates=times.evaluation_s > 0,
            disk_steps=job.checkpoint.interval_steps,
            ram_steps=job.checkpoint.ram_interval_steps or None,
            has_ram=job.checkpoint.ram_interval_steps != 0,
            ram_lost_by=ram_lost_by,
        )
