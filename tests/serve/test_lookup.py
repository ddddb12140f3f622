"""Guesses by looking up: what followed before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colossus.serve.lookup import Drafter


def drafter_of(tokens: list[int], most: int = 4) -> Drafter:
    drafter = Drafter(most)
    drafter.extend(tokens)
    return drafter


def test_it_guesses_what_followed_the_longest_match_last() -> None:
    assert drafter_of([1, 2, 3, 7, 8, 9, 2, 3, 5, 1, 2, 3]).guess(4) == [7, 8, 9, 2]
    assert drafter_of([2, 3, 7, 2, 3, 8, 2, 3]).guess(1) == [8]
    assert drafter_of([1, 2, 3, 4]).guess(4) == []
    assert drafter_of([1]).guess(4) == []


def test_a_guess_that_runs_past_the_end_repeats() -> None:
    assert drafter_of([5, 6, 5, 6, 5, 6]).guess(4) == [5, 6, 5, 6]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 6))
def test_a_guess_is_what_stood_behind_an_equal_end(tokens: list[int], most: int) -> None:
    guess = drafter_of(tokens, most=6).guess(most)
    assert len(guess) <= most
    if guess:
        whole = tokens + guess
        ends = [tuple(whole[at - 2 : at]) + tuple(whole[at : at + len(guess)]) for at in range(2, len(tokens))]
        assert (*tokens[-2:], *guess) in ends


def test_growing_by_parts_is_growing_at_once() -> None:
    tokens = [1, 2, 3, 1, 2, 3, 1, 2]
    parts = Drafter(4)
    for token in tokens:
        parts.extend([token])
    assert parts.guess(4) == drafter_of(tokens).guess(4)


def test_it_guesses_less_after_failures_and_rests_after_many() -> None:
    drafter = drafter_of([1, 2, 3] * 5)
    assert len(drafter.guess(4)) == 4
    drafter.learn(4, 1)
    assert len(drafter.guess(4)) == 2
    drafter.learn(2, 2)
    assert len(drafter.guess(4)) == 4
    drafter.learn(4, 0)
    drafter.learn(1, 0)
    assert drafter.guess(4) == []
    drafter.extend([1, 2, 3] * 2)
    assert drafter.guess(4) != []
