"""The order of requests: who is next, who gives way, and that nobody starves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.policy.batching import (
    MIN_STEP_TOKENS,
    MIXED_STEP_S,
    PATIENCE_S,
    BatchingState,
    Candidate,
    Order,
    decide,
    order_named,
    ranking,
    served_after_arrival,
    step_budget,
)
from colossus.spec.errors import ColossusError

NOW_S = 1000.0


def candidate(number: int, **known: Any) -> Candidate:
    return Candidate(**({"num_arrival": number, "arrival_s": NOW_S - 50 + number} | known))


@st.composite
def states(draw: Any) -> BatchingState:
    ages = draw(st.lists(st.floats(0, 2 * PATIENCE_S), max_size=12))
    candidates = tuple(
        Candidate(
            num_arrival=number,
            arrival_s=NOW_S - age,
            priority=draw(st.integers(-2, 2)),
            owner=draw(st.sampled_from("abc")),
            prompt_tokens=draw(st.integers(1, 1000)),
            most_tokens=draw(st.integers(0, 1000)),
        )
        for number, age in enumerate(ages)
    )
    served = draw(st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e6)))
    mean = draw(st.none() | st.floats(1, 500))
    return BatchingState(order=draw(st.sampled_from(list(Order))), candidates=candidates, now_s=NOW_S, served_tokens=served, mean_answer_tokens=mean)


@given(states())
def test_the_order_is_one_of_all_and_the_ends_are_its_ends(state: BatchingState) -> None:
    places = ranking(state)
    assert sorted(places) == list(range(len(state.candidates)))
    decision = decide(state)
    assert (decision.first, decision.last) == ((places[0], places[-1]) if places else (None, None))


@given(states())
def test_who_waited_too_long_goes_first_by_arrival(state: BatchingState) -> None:
    overdue = [place for place in ranking(state) if NOW_S - state.candidates[place].arrival_s > PATIENCE_S]
    assert ranking(state)[: len(overdue)] == overdue
    assert overdue == sorted(overdue, key=lambda place: (state.candidates[place].arrival_s, place))


@given(states(), st.randoms())
def test_the_order_does_not_depend_on_how_it_is_asked(state: BatchingState, random: Any) -> None:
    shuffled = list(state.candidates)
    random.shuffle(shuffled)
    ordered = [state.candidates[place] for place in ranking(state)]
    assert [shuffled[place] for place in ranking(replace(state, candidates=tuple(shuffled)))] == ordered


@pytest.mark.parametrize(
    ("order", "first", "last"),
    [(Order.FCFS, 0, 3), (Order.PRIORITY, 2, 0), (Order.SHORTEST, 1, 0), (Order.FAIR, 3, 2)],
)
def test_each_order_by_its_own_measure(order: Order, first: int, last: int) -> None:
    candidates = (
        candidate(0, owner="b", priority=5, prompt_tokens=900),
        candidate(1, owner="b", prompt_tokens=1),
        candidate(2, owner="b", priority=-1, prompt_tokens=10),
        candidate(3, owner="a", prompt_tokens=20),
    )
    decision = decide(BatchingState(order=order, candidates=candidates, now_s=NOW_S, served_tokens={"a": 1.0, "b": 2.0}))
    assert (decision.first, decision.last) == (first, last)


def test_an_answer_is_expected_to_be_as_long_as_usual() -> None:
    long_prompt, long_answer = candidate(0, prompt_tokens=100, most_tokens=10), candidate(1, prompt_tokens=10, most_tokens=4000)
    state = BatchingState(order=Order.SHORTEST, candidates=(long_prompt, long_answer), now_s=NOW_S)
    assert decide(state).first == 0
    assert decide(replace(state, mean_answer_tokens=20.0)).first == 1


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1e6)), st.sets(st.sampled_from("abcd")), st.sampled_from("abcd"))
def test_who_comes_back_has_no_claim_on_the_past(served: dict[str, float], active: set[str], owner: str) -> None:
    counted = served_after_arrival(served, active, owner)
    assert counted >= served.get(owner, 0.0)
    others = [served.get(other, 0.0) for other in active - {owner}]
    assert counted in (served.get(owner, 0.0), min(others, default=0.0))
    assert not others or counted >= min(others)


def test_an_unknown_order_is_told_the_nearest() -> None:
    assert order_named("fair") is Order.FAIR
    with pytest.raises(ColossusError) as raised:
        order_named("shortes")
    assert "shortest" in (raised.value.hint or "")


@given(st.integers(1, 4096), st.integers(0, 512), st.none() | st.floats(1e-6, 1.0))
def test_a_steps_budget(most_tokens: int, num_decoding: int, token_s: float | None) -> None:
    """Whole where nobody waits or nothing is known; else short enough, or as small as is worth while, and always with room for prompts."""
    budget = step_budget(most_tokens, num_decoding=num_decoding, token_s=token_s)
    if not num_decoding or token_s is None:
        assert budget == most_tokens
        return
    least = max(MIN_STEP_TOKENS, 2 * num_decoding)
    assert min(most_tokens, least) <= budget <= most_tokens
    assert budget * token_s <= MIXED_STEP_S * 1.0001 or budget <= least
    assert budget == most_tokens or (budget + 32) * token_s > MIXED_STEP_S
