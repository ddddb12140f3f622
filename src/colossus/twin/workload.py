"""The job as the twin sees it: what the estimate says of its step, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One synchronous training job. ``parts_s`` add up to ``step_s``; of them those that name communication may be congested.

    ``num_chips_per_replica``: of one data-parallel replica; an elastic gang shrinks by whole ones. ``step_s_by_chips``: the estimate on fewer chips,
    of every size that may be run; where none was made, a step takes as much longer as there are fewer replicas.
    """

    name: str
    chip: str
    num_job_chips: int
    num_chips_per_replica: int
    layout: str
    step_s: float
    parts_s: Mapping[str, float]
    tokens_per_step: int
    num_steps: int
    num_parameters: float
    model_flop_per_token: float | None = None
    peak_flop_per_s: float | None = None
    step_s_by_chips: Mapping[int, float] = field(default_factory=dict)

    @property
    def plan_s(self) -> float:
        """All steps, nothing lost."""
        return self.num_steps * self.step_s
