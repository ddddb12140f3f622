"""The guard of the loss: what is skipped, when the run goes back, and that its state survives JSON."""

from __future__ import annotations

import json
from math import inf, isinf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.policy.guard import GuardState, Observation, Verdict, after_rollback, observe, threshold
from colossus.spec.job import GuardSpec

SPEC = GuardSpec(spike_sigma=4.0, window_steps=10, max_bad_steps=3)


def feed(state, losses, spec=SPEC):
    for step, loss in enumerate(losses, 1):
        applied = np.isfinite(loss) and loss <= threshold(state, spec)
        state = observe(state, spec, Observation(step=step, loss=loss, grad_norm=1.0, applied=bool(applied))).state
    return state


def bad(loss=nan, grad_norm=1.0):
    return Observation(step=20, loss=loss, grad_norm=grad_norm, applied=False)


def test_no_threshold_until_a_window_is_seen():
    assert isinf(threshold(feed(GuardState(), [5.0] * 9), SPEC))
    assert threshold(feed(GuardState(), [5.0] * 10), SPEC) == pytest.approx(5.0 * (1 + 4 * 0.01))
    assert isinf(threshold(feed(GuardState(), [5.0] * 10), GuardSpec(spike_sigma=None)))


def test_first_window_is_the_plain_mean_and_variance():
    losses = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0]
    state = feed(GuardState(), losses)
    assert state.mean == pytest.approx(np.mean(losses))
    assert state.variance == pytest.approx(np.var(losses))


def test_reasons_tell_spikes_from_non_finite():
    assert observe(GuardState(), SPEC, bad(nan)).reason == "non-finite"
    assert observe(GuardState(), SPEC, bad(3.0, grad_norm=inf)).reason == "non-finite"
    assert observe(GuardState(), SPEC, bad(30.0)).reason == "spike"


def test_bad_steps_teach_nothing_and_add_up_to_a_rollback():
    state = feed(GuardState(), [5.0] * 10)
    first = observe(state, SPEC, bad())
    second = observe(first.state, SPEC, bad())
    third = observe(second.state, SPEC, bad(50.0))
    assert [d.verdict for d in (first, second, third)] == [Verdict.SKIP, Verdict.SKIP, Verdict.ROLLBACK]
    assert third.state.mean == state.mean and "3 bad steps in a row" in third.reason
    good = observe(second.state, SPEC, Observation(step=21, loss=5.0, grad_norm=1.0, applied=True))
    assert good.verdict is Verdict.ACCEPT and good.state.num_bad_in_a_row == 0


def test_rollbacks_replay_then_learn_anew_then_stop():
    state = feed(GuardState(), [5.0] * 10)
    assert after_rollback(state, num_rollbacks=1) == state
    assert isinf(threshold(after_rollback(state, num_rollbacks=2), SPEC))
    brink = GuardState(num_bad_in_a_row=2)
    assert observe(brink, SPEC, bad(), num_rollbacks=1).verdict is Verdict.ROLLBACK
    stop = observe(brink, SPEC, bad(), num_rollbacks=2)
    assert stop.verdict is Verdict.STOP and "optimizer.learning_rate" in stop.reason


@given(st.lists(st.floats(-10, 1e6), max_size=60), st.integers(0, 60))
def test_a_resumed_guard_decides_as_the_undisturbed_one(losses, cut):
    through_json = GuardState.from_data(json.loads(json.dumps(feed(GuardState(), losses[:cut]).to_data())))
    assert feed(through_json, losses[cut:]) == feed(GuardState(), losses)


@given(st.lists(st.floats(1.0, 1.5), min_size=10, max_size=60))
def test_ordinary_wiggles_of_a_steady_curve_are_no_spikes(losses):
    """Within the window's own range times sigma nothing is skipped."""
    spec = GuardSpec(spike_sigma=60.0, window_steps=10)
    assert feed(GuardState(), losses, spec).num_accepted == len(losses)
