"""The recovery ladder, rung by rung, and that it always ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.policy.recovery import Action, Fault, RecoveryState, decide
from colossus.spec.job import RecoverySpec

KILLED = Fault(cause="killed", detail="SIGKILL", ranks=(1,))
SPEC = RecoverySpec()
BROKEN = RecoveryState(fault=KILLED, num_workers=4, num_reformable=3, num_standbys=1, smaller_sizes=(1, 2))


def test_survivors_stay_when_a_standby_is_ready():
    decision = decide(BROKEN, SPEC)
    assert (decision.action, decision.num_workers, decision.delay_s) == (Action.REFORM, 4, 0.0)
    assert "rank 1 killed (SIGKILL)" in decision.reason and "3 survivors stay" in decision.reason


@pytest.mark.parametrize("change", [{"num_standbys": 0}, {"num_reformable": 0}, {"num_without_progress": 1}])
def test_all_start_anew_when_reforming_cannot_or_did_not_help(change):
    decision = decide(replace(BROKEN, **change), SPEC)
    assert (decision.action, decision.num_workers) == (Action.RESTART, 4)


def test_restarts_without_progress_wait_longer_and_longer():
    spec = RecoverySpec(max_restarts_without_progress=50)
    delays = [decide(replace(BROKEN, num_without_progress=n), spec).delay_s for n in range(12)]
    assert delays[:4] == [0.0, 1.0, 2.0, 4.0] and delays == sorted(delays) and delays[-1] == 30.0


def test_a_bad_place_is_left_out():
    decision = decide(replace(BROKEN, num_without_progress=3, num_same_rank=4), SPEC)
    assert (decision.action, decision.num_workers) == (Action.SHRINK, 2)
    assert "each time rank 1 failed" in decision.reason


@pytest.mark.parametrize("change", [{"num_same_rank": 1}, {"fault": Fault(cause="exited", detail="code 1", ranks=(0, 1)), "num_same_rank": 4}])
def test_a_fault_of_the_program_itself_is_not_shrunk_away(change):
    decision = decide(replace(BROKEN, num_without_progress=3, **change), SPEC)
    assert decision.action is Action.GIVE_UP
    assert "no new step" in decision.reason and "logs/" in decision.reason


def test_fewer_workers_when_the_engine_has_no_more():
    assert decide(replace(BROKEN, num_possible=3), SPEC).num_workers == 2
    assert decide(replace(BROKEN, num_possible=0), SPEC).action is Action.GIVE_UP
    refused = decide(replace(BROKEN, num_possible=3), RecoverySpec(allow_fewer_workers=False))
    assert refused.action is Action.GIVE_UP and "allow_fewer_workers" in refused.reason


def test_gives_up_at_once_when_no_restart_can_help():
    fault = Fault(cause="exited", detail="the corpus is empty", ranks=(0,), permanent=True)
    decision = decide(replace(BROKEN, fault=fault), SPEC)
    assert decision.action is Action.GIVE_UP and "the corpus is empty" in decision.reason


def test_no_restart_allowed():
    decision = decide(BROKEN, RecoverySpec(max_restarts=0))
    assert decision.action is Action.GIVE_UP and "recovery.max_restarts" in decision.reason


def test_progress_is_worth_any_number_of_restarts():
    assert decide(replace(BROKEN, num_recoveries=10_000), SPEC).action is Action.REFORM


@given(
    max_restarts=st.integers(0, 30),
    patience=st.integers(1, 5),
    faults=st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 2), st.integers(0, 4)), min_size=40, max_size=40),
)
def test_the_ladder_always_ends(max_restarts, patience, faults):
    """A supervisor's bookkeeping under any faults: sizes only fall, and it gives up within max_restarts recoveries."""
    spec = RecoverySpec(max_restarts=max_restarts, max_restarts_without_progress=patience)
    state = RecoveryState(fault=KILLED, num_workers=4, smaller_sizes=(1, 2))
    for progressed, rank, standbys, possible in faults:
        state = _next_fault(state, progressed=progressed, rank=rank, standbys=standbys, possible=possible)
        decision = decide(state, spec)
        if decision.action is Action.GIVE_UP:
            break
        assert (decision.num_workers < state.num_workers) is (decision.action is Action.SHRINK)
        shrunk = decision.action is Action.SHRINK
        state = replace(
            state,
            num_workers=decision.num_workers,
            num_recoveries=state.num_recoveries + 1,
            num_without_progress=0 if shrunk else state.num_without_progress + 1,
            smaller_sizes=tuple(size for size in state.smaller_sizes if size < decision.num_workers),
        )
    assert decision.action is Action.GIVE_UP and state.num_recoveries <= max_restarts


def _next_fault(state, *, progressed, rank, standbys, possible):
    same = not progressed and state.fault.ranks == (rank,)
    return replace(
        state,
        fault=replace(KILLED, ranks=(rank,)),
        num_without_progress=0 if progressed else state.num_without_progress,
        num_same_rank=state.num_same_rank + 1 if same else 1,
        num_reformable=state.num_workers - 1,
        num_standbys=standbys,
        num_possible=possible,
    )
