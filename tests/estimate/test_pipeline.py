"""Schedules of a pipeline: the papers' tables by hand, and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.catalog.models import load_model
from colossus.estimate.pipeline import bubble_s, in_flight, place
from colossus.estimate.shape import Shape
from colossus.estimate.step import step_parts
from colossus.spec.layout import Schedule
from tests.estimate.cutting import cut
from tests.plan.asking import question

ASKED = question()


def staged(schedule: Schedule, **changes):
    return cut(**({"pp": 8, "num_microbatches": 32, "schedule": place(schedule)} | changes))


def idle_s(schedule: Schedule, forward_s=1.0, input_s=1.0, weight_s=1.0, **changes) -> float:
    return float(bubble_s(staged(schedule, **changes), forward_s, input_s, weight_s)[0])


@pytest.mark.parametrize(
    ("schedule", "idle", "held"),
    [
        (Schedule.ONE_F_ONE_B, 21, 8),
        (Schedule.GPIPE, 21, 32),
        (Schedule.ZB_H1, 7, 8),
        (Schedule.ZB_H2, 0, 15),
        (Schedule.ZB_V, 0, 8),
        (Schedule.V_HALF, 10.5, 5),
        (Schedule.V_MIN, 14, 4),
        (Schedule.DUALPIPE, 6, 9),
    ],
)
def test_each_schedule_is_its_papers_table(schedule, idle, held):
    """8 stages, 32 microbatches, forward and both halves of backward one second each."""
    assert idle_s(schedule) == pytest.approx(idle)
    assert float(in_flight(staged(schedule))[0]) == pytest.approx(held)


def test_interleaving_idles_less_and_holds_more():
    assert idle_s(Schedule.ONE_F_ONE_B, virtual_stages=4) == pytest.approx(21 / 4)
    assert float(in_flight(staged(Schedule.ONE_F_ONE_B, virtual_stages=4))[0]) == pytest.approx(8 + 7 / 4)
    assert float(in_flight(staged(Schedule.ONE_F_ONE_B), 7.0)[0]) == 1  # the last stage


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(Schedule)), st.sampled_from([1, 2, 4, 16]), st.sampled_from([1, 4, 64]), st.tuples(*[st.floats(0.1, 10)] * 3))
def test_no_schedule_idles_below_zero_or_holds_more_than_there_is(schedule, stages, microbatches, times):
    one = staged(schedule, pp=stages, num_microbatches=microbatches)
    assert float(bubble_s(one, *times)[0]) >= 0 and 1 <= float(np.broadcast_to(in_flight(one), (1,))[0]) <= max(1, microbatches)
    if stages == 1:
        assert float(bubble_s(one, *times)[0]) == 0
    plain = float(bubble_s(staged(Schedule.ONE_F_ONE_B, pp=stages, num_microbatches=microbatches), *times)[0])
    if schedule not in (Schedule.GPIPE, Schedule.DUALPIPE):
        assert float(bubble_s(one, *times)[0]) <= plain + 1e-9


def test_zero_bubbles_are_faster_in_a_step_and_dualpipe_hides_the_all_to_all():
    """DualPipe's claim in DeepSeek-V3: all of it but a rest is under compute; parts still add up."""
    shape = Shape.of(load_model("deepseek-v3"))
    at = lambda schedule, **changes: step_parts(shape, staged(schedule, pp=16, dp=64, ep=64, num_microbatches=64, **changes), ASKED.device, ASKED.profile)
    plain, zero, dual = (at(schedule) for schedule in (Schedule.ONE_F_ONE_B, Schedule.ZB_H1, Schedule.DUALPIPE))
    assert float(zero.step_s[0]) < float(plain.step_s[0]) and float(dual.bubble_s[0]) < float(plain.bubble_s[0])
    assert float(dual.ep_s[0]) < float(plain.ep_s[0]) and float(dual.gemm_s[0]) == float(plain.gemm_s[0])
