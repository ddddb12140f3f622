"""Laws of the checkpoint interval, and of what is kept."""

from __future__ import annotations

from math import ceil, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.policy.checkpoint import LONGEST_INTERVAL_S, daly_s, expected_mtbf_s, expendable, interval_steps, ram_interval_steps

seconds = st.floats(1e-3, 1e5)
long_times = st.floats(1.0, 1e9)


def choose(**changes):
    return interval_steps(**{"save_s": 1.0, "blocked_s": 0.5, "step_s": 0.25, "mtbf_s": 3600.0, "restart_s": 5.0, **changes})


def test_daly_refines_young():
    """Daly 2006, fig. 1's regime: at C = 5 min and M = 24 h both agree within a few percent."""
    assert daly_s(cost_s=300, mtbf_s=86400) == pytest.approx(sqrt(2 * 300 * 86400), rel=0.04)
    assert daly_s(cost_s=1e-3, mtbf_s=1e6) == pytest.approx(sqrt(2e3), rel=1e-3)


def test_daly_is_the_minimum_of_the_exponential_model():
    """Daly's eq. 20: T ~ M (exp((W + C) / M) - 1) / W, restart apart; his W is within 0.1 % of its least value."""
    from math import exp

    for cost_s, mtbf_s in [(1, 100), (10, 100), (60, 3600), (300, 600)]:
        chosen = daly_s(cost_s=cost_s, mtbf_s=mtbf_s)
        times = [mtbf_s * (exp((w + cost_s) / mtbf_s) - 1) / w for w in (chosen * (0.2 + 0.01 * i) for i in range(300))]
        assert mtbf_s * (exp((chosen + cost_s) / mtbf_s) - 1) / chosen <= 1.001 * min(times)


@given(cost_s=seconds, short=long_times, longer=long_times)
def test_longer_mtbf_never_shortens_the_interval(cost_s, short, longer):
    short, longer = sorted((short, longer))
    assert daly_s(cost_s=cost_s, mtbf_s=short) <= daly_s(cost_s=cost_s, mtbf_s=longer) * (1 + 1e-9)
    assert choose(blocked_s=cost_s, mtbf_s=short).interval_steps <= choose(blocked_s=cost_s, mtbf_s=longer).interval_steps


@given(save_s=seconds, blocked_s=seconds, step_s=seconds, mtbf_s=long_times)
def test_saves_never_overlap_and_intervals_are_whole(save_s, blocked_s, step_s, mtbf_s):
    decision = choose(save_s=save_s, blocked_s=blocked_s, step_s=step_s, mtbf_s=mtbf_s)
    assert decision.interval_steps >= max(1, ceil(save_s / step_s))
    assert 0 < decision.overhead_fraction <= 1


def test_blocked_time_is_the_cost_not_the_save():
    assert choose(save_s=1.0).interval_steps == choose(save_s=10.0).interval_steps
    assert choose(blocked_s=0.5).interval_steps < choose(blocked_s=2.0).interval_steps
    assert "overlap" in choose(save_s=500.0).reason


def test_a_machine_that_hardly_fails_still_saves():
    decision = choose(mtbf_s=1e9, blocked_s=0.1)
    assert decision.interval_steps * 0.25 == LONGEST_INTERVAL_S
    assert choose(mtbf_s=1e12, blocked_s=30.0).interval_steps * 0.25 == 3000.0


@given(copy_s=st.floats(0, 1e3), step_s=seconds)
def test_ram_copies_cost_at_most_one_percent(copy_s, step_s):
    steps = ram_interval_steps(copy_s=copy_s, step_s=step_s)
    assert steps >= 1 and copy_s / (steps * step_s) <= 0.01 * (1 + 1e-9)


@given(prior=long_times, failures=st.integers(0, 1000), elapsed_s=st.floats(0, 1e8))
def test_more_failures_never_lengthen_the_mtbf(prior, failures, elapsed_s):
    few = expected_mtbf_s(prior_mtbf_s=prior, num_failures=failures, elapsed_s=elapsed_s)
    many = expected_mtbf_s(prior_mtbf_s=prior, num_failures=failures + 1, elapsed_s=elapsed_s)
    assert 0 < many <= few <= max(prior, elapsed_s)


def test_observed_failures_soon_outweigh_the_prior():
    assert expected_mtbf_s(prior_mtbf_s=2e7, num_failures=0, elapsed_s=10.0) == 2e7
    assert expected_mtbf_s(prior_mtbf_s=2e7, num_failures=20, elapsed_s=2e6) == pytest.approx(1e5, rel=0.02)


@given(steps=st.lists(st.integers(0, 1000), min_size=1), keep_last=st.integers(1, 5), keep_every=st.none() | st.integers(1, 100))
def test_the_newest_is_never_deleted(steps, keep_last, keep_every):
    gone = expendable(steps, keep_last=keep_last, keep_every=keep_every)
    left = sorted(set(steps) - set(gone))
    assert left[-1] == max(steps)
    assert left[-keep_last:] == sorted(set(steps))[-keep_last:]
    assert all(step in left for step in steps if keep_every and step % keep_every == 0)


def test_what_is_deleted():
    assert expendable(range(0, 100, 10), keep_last=2, keep_every=40) == [10, 20, 30, 50, 60, 70]
