"""What to do when workers of a gang die or hang: the recovery ladder.

From cheap to dear: reform (survivors stay, a standby takes the dead rank) -> restart (all new) -> shrink (fewer
workers) -> wait (for workers known to come back) -> give up. A rung is left when it brought no progress, that is no
optimizer step beyond the furthest so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from colossus.spec.job import RecoverySpec

# Delays between restarts that bring no progress: none, then doubling. Long enough for a port or a device to come free.
_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 30.0


class Action(StrEnum):
    """The rungs of the ladder; the values are those of the ``recovery`` event."""

    REFORM = "reform"
    RESTART = "restart"
    SHRINK = "shrink"
    WAIT = "wait"
    GIVE_UP = "give_up"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The first cause of a gang's end: ranks that only followed a dead peer are not at fault.

    ``permanent``: the worker itself said that no restart can mend it (a bad job, a missing corpus).
    """

    cause: str
    detail: str
    ranks: tuple[int, ...] = ()
    permanent: bool = False


@dataclass(frozen=True, kw_only=True)
class RecoveryState:
    """What the supervisor knows when a gang is broken.

    ``num_recoveries``: gangs formed anew so far, by any action. ``num_without_progress``: of them, the latest in a row at
    this gang size after which no new step was done. ``num_same_rank``: faults in a row, without progress, of the same
    single rank, this one included. ``num_reformable``: survivors that wait and can take new peers in process.
    ``num_possible``: workers that the engine can provide at all (None: no limit known). ``smaller_sizes``: worker
    counts below ``num_workers`` for which a layout fits. ``num_expected``: workers in repair that will come back.
    """

    fault: Fault
    num_workers: int
    num_recoveries: int = 0
    num_without_progress: int = 0
    num_same_rank: int = 1
    num_reformable: int = 0
    num_standbys: int = 0
    num_possible: int | None = None
    smaller_sizes: tuple[int, ...] = field(default=())
    num_expected: int = 0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do next, with how many workers, after which delay, and why."""

    action: Action
    num_workers: int
    reason: str
    delay_s: float = 0.0


def decide(state: RecoveryState, spec: RecoverySpec) -> Decision:
    """The next rung. It ends: after ``spec.max_restarts`` recoveries where set, after ``max_restarts_without_progress`` in a row always."""
    if state.fault.permanent:
        return _give_up(state, "no restart can mend it", "mend what it names, then: colossus resume RUN")
    if spec.max_restarts is not None and state.num_recoveries >= spec.max_restarts:
        return _give_up(
            state, f"{state.num_recoveries} recoveries reached recovery.max_restarts", "see logs/ in the run's folder; colossus resume RUN starts a fresh count"
        )
    if state.num_possible is not None and state.num_possible < state.num_workers:
        return _shrink(state, spec, f"only {state.num_possible} of {state.num_workers} workers can be started", most=state.num_possible)
    if state.num_without_progress >= spec.max_restarts_without_progress:
        return _no_progress(state, spec)
    if _can_reform(state):
        return _reform(state)
    return _restart(state)


def _can_reform(state: RecoveryState) -> bool:
    missing = state.num_workers - state.num_reformable
    return state.num_without_progress == 0 and 0 < state.num_reformable < state.num_workers and missing <= state.num_standbys


def _reform(state: RecoveryState) -> Decision:
    missing = state.num_workers - state.num_reformable
    reason = f"{_named(state.fault)}; {_count(state.num_reformable, 'survivor')} stay, {_count(missing, 'standby', 'standbys')} step in"
    return Decision(action=Action.REFORM, num_workers=state.num_workers, reason=reason)


def _restart(state: RecoveryState) -> Decision:
    tries = state.num_without_progress
    if tries:
        why = f"{_count(tries, 'recovery', 'recoveries')} brought no progress"
    elif state.num_reformable == 0:
        why = "no survivor can take new peers"
    else:
        why = f"{_count(state.num_workers - state.num_reformable, 'rank')} to fill, {_count(state.num_standbys, 'standby', 'standbys')} ready"
    delay_s = min(_FIRST_DELAY_S * 2 ** (tries - 1), _LONGEST_DELAY_S) if tries else 0.0
    return Decision(action=Action.RESTART, num_workers=state.num_workers, reason=f"{_named(state.fault)}; all start anew, since {why}", delay_s=delay_s)


def _no_progress(state: RecoveryState, spec: RecoverySpec) -> Decision:
    """Fewer workers help where one place is bad, not where the program itself fails: that takes all ranks or any."""
    tries = f"{_count(state.num_without_progress, 'recovery', 'recoveries')} in a row brought no new step"
    if len(state.fault.ranks) == 1 and state.num_same_rank > 1:
        return _shrink(state, spec, f"{tries}, each time rank {state.fault.ranks[0]} failed", most=state.num_workers - 1)
    return _give_up(state, tries, "the same fault comes back on any worker, so look at logs/ in the run's folder before colossus resume RUN")


def _shrink(state: RecoveryState, spec: RecoverySpec, why: str, *, most: int) -> Decision:
    sizes = [size for size in state.smaller_sizes if 0 < size <= most and size < state.num_workers]
    if state.num_expected and not (spec.allow_fewer_workers and sizes):
        return Decision(action=Action.WAIT, num_workers=state.num_workers, reason=f"{_named(state.fault)}; {why}; {state.num_expected} in repair will be back")
    if not spec.allow_fewer_workers:
        return _give_up(state, why, "recovery.allow_fewer_workers is false: free a worker's place, or set it true")
    if not sizes:
        return _give_up(state, why, f"no layout fits {most} or fewer workers: free a worker's place, or give a batch that more counts divide")
    reason = f"{_named(state.fault)}; {why}; {max(sizes)} is the largest smaller gang that fits"
    return Decision(action=Action.SHRINK, num_workers=max(sizes), reason=reason)


def _give_up(state: RecoveryState, why: str, advice: str) -> Decision:
    return Decision(action=Action.GIVE_UP, num_workers=0, reason=f"{_named(state.fault)}; {why}; {advice}")


def _named(fault: Fault) -> str:
    who = f"rank{'s' if len(fault.ranks) > 1 else ''} {', '.join(map(str, fault.ranks))} " if fault.ranks else ""
    return f"{who}{fault.cause} ({fault.detail})"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
