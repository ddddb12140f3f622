"""Which engine gets a request, when a lost one is tried again, when a process is started again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colossus.policy import restart
from colossus.policy.routing import MAX_CRASHES, EngineState, LossState, RoutingState, choose, retry

engines = st.lists(
    st.builds(
        lambda ready, work, cached, requests: {"ready": ready, "num_outstanding_tokens": work, "num_cached_tokens": cached, "num_requests": requests},
        st.booleans(),
        st.integers(0, 10_000),
        st.integers(0, 2_000),
        st.integers(0, 50),
    ),
    max_size=6,
).map(lambda found: [EngineState(index=index, **fields) for index, fields in enumerate(found)])


def ahead(engine, num_prompt_tokens):
    return engine.num_outstanding_tokens + max(0, num_prompt_tokens - engine.num_cached_tokens)


@given(engines, st.integers(1, 3_000))
def test_it_is_a_ready_one_with_the_least_before_the_first_token(found, num_prompt_tokens):
    route = choose(RoutingState(num_prompt_tokens=num_prompt_tokens, engines=found))
    ready = [engine for engine in found if engine.ready]
    assert (route is None) == (not ready)
    if route is not None:
        assert found[route.index].ready
        assert route.num_tokens_ahead == min(ahead(engine, num_prompt_tokens) for engine in ready)


@given(engines, st.integers(1, 3_000))
def test_the_order_in_which_engines_are_listed_means_nothing(found, num_prompt_tokens):
    state = RoutingState(num_prompt_tokens=num_prompt_tokens, engines=found)
    assert choose(state) == choose(RoutingState(num_prompt_tokens=num_prompt_tokens, engines=found[::-1]))


def test_a_cached_prefix_outweighs_less_work_than_it_saves():
    near = EngineState(index=0, num_outstanding_tokens=500, num_cached_tokens=1000)
    idle = EngineState(index=1)
    assert choose(RoutingState(num_prompt_tokens=1010, engines=[near, idle])).index == 0
    assert choose(RoutingState(num_prompt_tokens=100, engines=[near, idle])).index == 1


def test_equal_engines_are_filled_in_turn():
    state = [EngineState(index=index, num_requests=count) for index, count in enumerate((2, 1, 1))]
    assert choose(RoutingState(num_prompt_tokens=5, engines=state)).index == 1


def test_what_has_begun_is_not_tried_again_nor_what_crashes_engines():
    assert retry(LossState(num_crashes=0, begun=False)).again
    assert retry(LossState(num_crashes=1, begun=False)).again
    assert "begun" in retry(LossState(num_crashes=0, begun=True)).reason
    assert "crashed" in retry(LossState(num_crashes=MAX_CRASHES, begun=False)).reason


def test_a_process_that_served_comes_back_at_once_and_for_ever():
    assert restart.decide(restart.LostState(num_failed_starts=0, has_served=True)).delay_s == 0
    delays = [restart.decide(restart.LostState(num_failed_starts=count, has_served=True, permanent=True)).delay_s for count in range(1, 200)]
    assert delays == sorted(delays) and delays[0] > 0 and delays[-1] == delays[50] < 60


def test_one_that_never_served_is_given_up():
    assert restart.decide(restart.LostState(num_failed_starts=1, has_served=False, permanent=True)).delay_s is None
    decisions = [restart.decide(restart.LostState(num_failed_starts=count, has_served=False)).delay_s for count in (1, 2, 3)]
    assert decisions[0] < decisions[1] and decisions[2] is None
