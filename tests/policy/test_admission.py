"""Admission: in time or not at all, and never a server that refuses with nothing to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from colossus.policy.admission import AdmissionState, decide, estimated_ttft_s

MEASURED = AdmissionState(
    prompt_tokens=100,
    waiting_prompt_tokens=400,
    num_waiting=4,
    num_places=8,
    num_places_free=0,
    max_waiting=10,
    max_ttft_s=1.0,
    prompt_tokens_per_s=1000.0,
    answer_tokens_per_s=400.0,
    mean_answer_tokens=20.0,
)


@st.composite
def states(draw: Any) -> AdmissionState:
    rate = st.none() | st.floats(1, 1e5)
    places = draw(st.integers(1, 64))
    return AdmissionState(
        prompt_tokens=draw(st.integers(1, 10_000)),
        waiting_prompt_tokens=draw(st.integers(0, 1_000_000)),
        num_waiting=draw(st.integers(0, 100)),
        num_places=places,
        num_places_free=draw(st.integers(0, places)),
        max_waiting=draw(st.integers(0, 100)),
        max_ttft_s=draw(st.none() | st.floats(0.01, 100)),
        prompt_tokens_per_s=draw(rate),
        answer_tokens_per_s=draw(rate),
        mean_answer_tokens=draw(st.none() | st.floats(1, 1000)),
    )


@given(states())
def test_a_refusal_says_when_to_come_back_and_an_empty_server_gives_none(state: AdmissionState) -> None:
    decision = decide(state)
    assert (decision.retry_after_s is None) == decision.admitted
    if not decision.admitted:
        assert 1 <= (decision.retry_after_s or 0) <= 120
        assert state.num_waiting or state.num_places_free < state.num_places


@given(states(), st.integers(0, 100_000), st.integers(0, 20))
def test_a_longer_queue_never_admits_more(state: AdmissionState, more_tokens: int, more_waiting: int) -> None:
    longer = replace(state, waiting_prompt_tokens=state.waiting_prompt_tokens + more_tokens, num_waiting=state.num_waiting + more_waiting)
    assert decide(longer).admitted <= decide(state).admitted


@given(states(), st.floats(1, 10))
def test_a_faster_server_never_admits_less(state: AdmissionState, factor: float) -> None:
    faster = replace(state, prompt_tokens_per_s=state.prompt_tokens_per_s and state.prompt_tokens_per_s * factor)
    assert decide(faster).admitted >= decide(state).admitted


def test_the_estimate_is_the_queue_over_the_speeds() -> None:
    assert estimated_ttft_s(MEASURED) == 500 / 1000 + 5 * 20 / 400
    assert decide(MEASURED).admitted
    refused = decide(replace(MEASURED, waiting_prompt_tokens=900))
    assert not refused.admitted and "1.25 s, the objective is 1 s" in refused.reason
    assert refused.retry_after_s == 1.0


def test_nothing_measured_means_nothing_refused_but_a_full_queue() -> None:
    new = replace(MEASURED, prompt_tokens_per_s=None, answer_tokens_per_s=None, waiting_prompt_tokens=10**9)
    assert decide(new).admitted
    assert "10 at most" in decide(replace(new, num_waiting=10)).reason
