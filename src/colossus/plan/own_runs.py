"""Runs of this very machine over their plans: a factor for compute, memory and communication, fitted to as few as one run.

Least squares of logarithms. A run's median step weighs with a residual of 3 %; the parts of its profiled step, where it has one, with 15 %;
each factor is held to one by how far off a plan's group may plausibly be, so that what the runs do not tell stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from colossus.estimate.local import GROUPS, scaled
from colossus.spec.plan import OwnFit, StepEstimate

_STEP_RESIDUAL, _PART_RESIDUAL = 0.03, 0.15
_PLAUSIBLE = {"compute": 0.3, "memory": 0.5, "communication": 0.7}
# Parts that a profile tells, by the group that they are planned in.
_SEEN_IN = {"gemm": "compute", "attention": "compute", "head": "compute", "elementwise": "memory", "optimizer": "memory", "communication": "communication"}


@dataclass(frozen=True, kw_only=True)
class OwnRun:
    """A run as it is planned now without any calibration, the steps it took, and one step's parts ({} where none was profiled)."""

    name: str
    planned: StepEstimate
    steps_s: Sequence[float]
    parts_s: Mapping[str, float]

    @property
    def median_s(self) -> float:
        return median(self.steps_s)

    def group_s(self) -> dict[str, float]:
        """Seconds of each group in a median step, by the profiled step's shares."""
        whole_s = sum(self.parts_s.values())
        found: dict[str, float] = {}
        for name, seconds in self.parts_s.items():
            if name in _SEEN_IN:
                found[_SEEN_IN[name]] = found.get(_SEEN_IN[name], 0.0) + seconds / whole_s * self.median_s
        return found


def fit_own(runs: Sequence[OwnRun], *, machine: str, basis: str, date: str) -> OwnFit:
    """Factors for all runs together, and how far each run's steps lie from its plan with them."""
    from scipy.optimize import least_squares

    groups = list(_PLAUSIBLE)
    found = least_squares(lambda logs: _residuals(runs, dict(zip(groups, np.exp(logs), strict=True))), np.zeros(len(groups))).x
    factors = {group: float(f"{factor:.4g}") for group, factor in zip(groups, np.exp(found), strict=True)}
    ratios = [run.median_s / planned_s(run, factors) for run in runs]
    steps = np.concatenate([np.array(run.steps_s) / planned_s(run, factors) for run in runs])
    lower, upper = np.percentile(steps, [5, 95])
    return OwnFit(
        machine=machine,
        basis=basis,
        date=date,
        num_runs=len(runs),
        runs=[run.name for run in runs],
        factors=factors,
        median_error_fraction=float(np.median(np.abs(np.array(ratios) - 1))),
        lower_fraction=float(min(lower, 1.0)),
        upper_fraction=float(max(upper, 1.0)),
    )


def planned_s(run: OwnRun, factors: Mapping[str, float]) -> float:
    return sum(scaled(run.planned.parts_s, factors).values())


def _residuals(runs: Sequence[OwnRun], factors: Mapping[str, float]) -> np.ndarray:
    found = [np.log(factor) / _PLAUSIBLE[group] for group, factor in factors.items()]
    for run in runs:
        found.append(np.log(planned_s(run, factors) / run.median_s) / _STEP_RESIDUAL)
        for group, measured_s in run.group_s().items():
            planned = sum(run.planned.parts_s.get(name, 0.0) for name in GROUPS[group])
            if planned and measured_s:
                found.append(np.log(factors[group] * planned / measured_s) / _PART_RESIDUAL)
    return np.array(found)
