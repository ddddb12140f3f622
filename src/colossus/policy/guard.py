"""Bad steps: which updates to skip, and when to go back to a good checkpoint.

The skip itself happens inside the compiled step, without asking the host: the step is handed ``threshold(state, spec)``
and leaves all weights as they are when its loss or gradient norm is not finite or the loss is above the threshold.
Afterwards the host calls ``observe``. The state is a small JSON-able value that travels in the checkpoint, so that a
resumed run decides as the undisturbed one. For that, observe every step in order and with a fixed lag (say, the
threshold of step k + 1 from the losses up to k).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from math import inf, isfinite, sqrt
from typing import Any

from colossus.spec.job import GuardSpec

# The spread that a loss is granted at least, relative to its mean: a flat curve's next wiggle is no spike.
_LEAST_SPREAD_FRACTION = 0.01
# Rollbacks without getting past the bad steps: the first replays (a transient fault heals), the second learns the
# loss's level anew (a lasting change of level is accepted), then it is not for a program to decide.
_MAX_ROLLBACKS = 2


class Verdict(StrEnum):
    ACCEPT = "accept"
    SKIP = "skip"
    ROLLBACK = "rollback"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class GuardState:
    """Running mean and variance of accepted losses, how many there were, and the bad steps in a row."""

    num_accepted: int = 0
    mean: float = 0.0
    variance: float = 0.0
    num_bad_in_a_row: int = 0

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> GuardState:
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a step reported; ``applied`` is the step's own word on whether it changed the weights."""

    step: int
    loss: float
    grad_norm: float
    applied: bool


@dataclass(frozen=True, kw_only=True)
class Decision:
    """``reason`` is the event's: "non-finite" or "spike" for a bad step, in words for ROLLBACK and STOP, else ""."""

    verdict: Verdict
    state: GuardState
    reason: str = ""


def threshold(state: GuardState, spec: GuardSpec) -> float:
    """The loss above which the next step skips its update: mean + spike_sigma * spread; infinite until a window is seen."""
    if spec.spike_sigma is None or state.num_accepted < spec.window_steps:
        return inf
    spread = max(sqrt(state.variance), _LEAST_SPREAD_FRACTION * abs(state.mean))
    return state.mean + spec.spike_sigma * spread


def observe(state: GuardState, spec: GuardSpec, seen: Observation, *, num_rollbacks: int = 0) -> Decision:
    """Takes note of one step. ``num_rollbacks``: how often the run went back without getting past this step since."""
    if seen.applied:
        return Decision(verdict=Verdict.ACCEPT, state=_learn(state, spec, seen.loss))
    kind = "spike" if isfinite(seen.loss) and isfinite(seen.grad_norm) else "non-finite"
    bad = GuardState(**{**asdict(state), "num_bad_in_a_row": state.num_bad_in_a_row + 1})
    if bad.num_bad_in_a_row < spec.max_bad_steps:
        return Decision(verdict=Verdict.SKIP, state=bad, reason=kind)
    told = f"{bad.num_bad_in_a_row} bad steps in a row up to step {seen.step}, the last {kind} (loss {seen.loss:.6g}, gradient norm {seen.grad_norm:.6g})"
    if num_rollbacks < _MAX_ROLLBACKS:
        return Decision(verdict=Verdict.ROLLBACK, state=bad, reason=told)
    advice = "try a lower optimizer.learning_rate, a lower optimizer.clip_norm or a higher guard.spike_sigma"
    return Decision(verdict=Verdict.STOP, state=bad, reason=f"{told}, again after {num_rollbacks} rollbacks; {advice}")


def after_rollback(restored: GuardState, *, num_rollbacks: int) -> GuardState:
    """The state to go on with from the good checkpoint: its own at the first rollback, then one that learns anew."""
    return restored if num_rollbacks <= 1 else GuardState()


def _learn(state: GuardState, spec: GuardSpec, loss: float) -> GuardState:
    """Mean and variance: plain over the first window, exponentially forgetting (weight 1 / window) after it.

    mean' = mean + a d, variance' = (1 - a)(variance + a d^2), d = loss - mean: T. Finch, "Incremental calculation of
    weighted mean and variance" (2009), eq. 124 and 143.
    """
    weight = 1 / min(state.num_accepted + 1, spec.window_steps)
    difference = loss - state.mean
    return GuardState(
        num_accepted=state.num_accepted + 1,
        mean=state.mean + weight * difference,
        variance=(1 - weight) * (state.variance + weight * difference**2),
        num_bad_in_a_row=0,
    )
