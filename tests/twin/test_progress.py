"""Progress in closed form against the same, done step by step."""

from __future__ import annotations

from fractions import Fraction
from math import floor, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.twin.progress import Progress


class Plodder:
    """Steps and saves one after the other, in exact numbers of milliseconds."""

    def __init__(self, interval: int | None, blocked_ms: int, save_ms: int) -> None:
        self.interval, self.blocked_ms, self.save_ms = interval, blocked_ms, save_ms
        self.done = self.now_ms = self.left_ms = self.blocked = Fraction(0)
        self.saves: list[tuple[int, Fraction]] = []

    def advance(self, elapsed_ms: int, step_ms: int) -> None:
        end_ms = self.now_ms + elapsed_ms
        while self.now_ms < end_ms:
            if self.left_ms:
                took_ms = min(self.left_ms, end_ms - self.now_ms)
                self.left_ms -= took_ms
                self.blocked += took_ms
            else:
                took_ms = min((floor(self.done) + 1 - self.done) * step_ms, end_ms - self.now_ms)
                self.done += took_ms / step_ms
            self.now_ms += took_ms
            if self.interval and self.done and self.done % self.interval == 0 and (not self.saves or self.saves[-1][0] != self.done):
                self.saves.append((int(self.done), self.now_ms))
                self.left_ms = Fraction(self.blocked_ms)

    def committed(self) -> int:
        return max((step for step, begun in self.saves if self.now_ms - begun >= self.save_ms), default=0)


@given(
    st.integers(1, 5) | st.none(),
    st.integers(0, 30),
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(1, 400), st.sampled_from([16, 32, 64])), min_size=1, max_size=6),
)
def test_progress_is_that_of_steps_done_one_by_one(interval: int | None, blocked_ms: int, more_ms: int, stretches: list[tuple[int, int]]) -> None:
    save_ms = blocked_ms + min(more_ms, 16 * (interval or 1))
    unit = 1024  # of these a second, floats are exact too, so that both stand on the same side of every boundary
    plodder, progress = Plodder(interval, blocked_ms, save_ms), Progress(blocked_s=blocked_ms / unit, save_s=save_ms / unit)
    progress.begin(0, interval)
    now_s = blocked_s = 0.0
    for elapsed_ms, step_ms in stretches:
        plodder.advance(elapsed_ms, step_ms)
        now_s += elapsed_ms / unit
        blocked_s += progress.advance(now_s, elapsed_ms / unit, step_ms / unit)[1]
    assert progress.at == float(plodder.done)
    assert blocked_s == float(plodder.blocked) / unit
    assert progress.committed(now_s) == plodder.committed()
    assert progress.num_saves == len(plodder.saves)


@given(st.integers(1, 50), st.integers(1, 400), st.floats(0.0, 2.0), st.floats(0.1, 3.0), st.floats(0.0, 500.0))
def test_the_rest_takes_what_it_is_said_to_take(interval: int, num_steps: int, blocked_s: float, step_s: float, begun_s: float) -> None:
    progress = Progress(blocked_s=blocked_s, save_s=blocked_s)
    progress.begin(0, interval)
    whole_s = progress.remaining_s(num_steps, step_s)
    first_s = min(begun_s, 0.9 * whole_s)
    progress.advance(first_s, first_s, step_s)
    rest_s = progress.remaining_s(num_steps, step_s)
    assert first_s + rest_s == pytest.approx(whole_s)
    progress.advance(whole_s, rest_s, step_s)
    assert progress.at == pytest.approx(num_steps)


def test_without_saves_a_job_takes_its_steps() -> None:
    progress = Progress(blocked_s=1.0, save_s=1.0)
    progress.begin(0, None)
    assert progress.next_save == inf
    assert progress.remaining_s(12345, 0.1) == 12345 * 0.1
