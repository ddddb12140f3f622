"""The kernel's order, and its jumps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.twin.kernel import Kernel


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=40))
def test_events_go_by_time_then_priority_then_sequence(asked: list[tuple[int, int]]) -> None:
    kernel, seen = Kernel(), []
    for number, (time_s, priority) in enumerate(asked):
        kernel.at(float(time_s), seen.append, number, priority)
    kernel.run()
    assert seen == sorted(range(len(asked)), key=lambda number: (*asked[number], number))
    assert kernel.num_events == len(asked)


def test_an_event_may_ask_for_more_at_its_own_time() -> None:
    kernel, seen = Kernel(), []

    def tell(left: int) -> None:
        seen.append((kernel.now_s, left))
        if left:
            kernel.after(0.0 if left % 2 else 1.5, tell, left - 1)

    kernel.at(1.0, tell, 4)
    kernel.run()
    assert seen == [(1.0, 4), (2.5, 3), (2.5, 2), (4.0, 1), (4.0, 0)]


def test_the_past_is_refused_and_the_horizon_kept() -> None:
    kernel, seen = Kernel(), []
    kernel.at(1.0, seen.append, "in")
    kernel.at(2.0, seen.append, "at")
    kernel.at(2.1, seen.append, "beyond")
    kernel.run(2.0)
    assert seen == ["in", "at"]
    with pytest.raises(ValueError, match="before now"):
        kernel.at(1.9, seen.append)


def test_a_jump_is_only_made_over_nothing() -> None:
    kernel, seen = Kernel(), []

    def try_them(_: object) -> None:
        seen.extend([kernel.jump(5.0), kernel.jump(4.9), kernel.now_s, kernel.jump(11.0)])

    kernel.at(1.0, try_them)
    kernel.at(5.0, lambda _: seen.append("five"))
    kernel.run(10.0)
    assert seen == [False, True, 4.9, False, "five"]
