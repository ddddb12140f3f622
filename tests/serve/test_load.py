"""The load generator: lengths, arrivals, traces, prompts, what it sees of a server, and the figures."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.serve.load.client import Endpoint
from colossus.serve.load.drive import Watch
from colossus.serve.load.errors import ServerError, TraceError
from colossus.serve.load.measures import in_flight, is_good, latency, load_point
from colossus.serve.load.prompts import Prompts
from colossus.serve.load.run import CLIENT_IN_DOUBT, Load, Order, run
from colossus.serve.load.sample import Sample
from colossus.serve.load.server import base_url
from colossus.serve.load.traces import read_trace
from colossus.serve.load.workload import Ask, Distribution, Lengths, make_asks, numbered, poisson, scaled
from colossus.spec.load import ClientCost, LoadTest, Objectives
from tests.serve.scripted import Script, serving

TRACES = Path("/work/shared/traces")
COST = ClientCost(cpu_fraction=0.1, lag_p99_s=0.0, lag_max_s=0.0, send_lag_p99_s=0.0)


def play(order: Order, keep: Any = None) -> LoadTest:
    return asyncio.run(run(order, lambda label, ended, total: None, keep))


def closed(url: str, *, clients: int = 2, requests: int = 6, tokens: int = 4, **more: Any) -> Order:
    asks = make_asks(Lengths(prompt_tokens=10, output_tokens=tokens), requests, 0)
    return Order(url=url, loads=[Load(label="clients", asks=asks, num_clients=clients)], workload="small", **more)


# --- workload


@given(st.sampled_from(list(Distribution)), st.integers(1, 400), st.integers(1, 50), st.integers(0, 3))
def test_lengths_are_positive_and_the_same_for_the_same_seed(distribution, mean, number, seed):
    lengths = Lengths(prompt_tokens=mean, output_tokens=mean, distribution=distribution, shared_tokens=7)
    asks = make_asks(lengths, number, seed)
    assert asks == make_asks(lengths, number, seed)
    assert all(ask.prompt_tokens >= 1 and ask.output_tokens >= 1 and ask.shared_tokens <= ask.prompt_tokens for ask in asks)


@pytest.mark.parametrize("distribution", Distribution)
def test_lengths_have_the_mean_that_was_asked_for(distribution):
    asks = make_asks(Lengths(prompt_tokens=200, output_tokens=100, distribution=distribution), 4000, 1)
    assert sum(ask.prompt_tokens for ask in asks) / len(asks) == pytest.approx(200, rel=0.05)
    assert sum(ask.output_tokens for ask in asks) / len(asks) == pytest.approx(100, rel=0.05)


def test_poisson_arrivals_come_at_their_rate_and_in_order():
    times = [ask.at_s for ask in poisson(make_asks(Lengths(), 4000, 0), 8.0, 3)]
    assert times == sorted(times) and times[0] == 0
    assert times[-1] == pytest.approx(4000 / 8, rel=0.06)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(2, 600), st.floats(0.01, 3))
def test_scaled_requests_fit_the_server(prompt, output, most, factor):
    [ask] = scaled([Ask(number=0, prompt_tokens=prompt, output_tokens=output)], length_factor=factor, max_sequence_tokens=most)
    assert ask.prompt_tokens >= 1 and ask.output_tokens >= 1 and ask.prompt_tokens + ask.output_tokens <= most


# --- traces


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ('{"at_s": 2, "prompt_tokens": 5, "output_tokens": 6}\n{"at_s": 3.5, "prompt_tokens": 7, "output_tokens": 8}\n', (0, 5, 6), (1.5, 7, 8)),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
            (0, 374, 44),
            (4.314579, 396, 109),
        ),
        ('{"timestamp": 27000, "input_length": 9, "output_length": 3, "hash_ids": [4]}\n', (0, 9, 3), (0, 9, 3)),
        (
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
            "40,GPT-4,10,0,10,API log\n45,GPT-4,1087,230,1317,API log\n",
            (0, 472, 18),
            (40, 1087, 230),
        ),
    ],
)
def test_traces_of_every_kind_are_read(tmp_path, text, first, last):
    path = tmp_path / "trace"
    path.write_text(text)
    asks = read_trace(path)
    told = [(pytest.approx(ask.at_s), ask.prompt_tokens, ask.output_tokens) for ask in asks]
    assert first == told[0] and last == told[-1]
    assert [ask.number for ask in asks] == list(range(len(asks)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c\n1,2,3\n", "line 1"),
        ("", "no requests"),
        ('{"at_s": 1}\n', "'prompt_tokens' is missing"),
        ('{"at_s": "x", "prompt_tokens": 1, "output_tokens": 1}\n', "line 1"),
        ('{"at_s": 1, "prompt_tokens"\n', "line 1"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,2\n", "line 2"),
    ],
)
def test_a_trace_that_is_none_is_told_in_words(tmp_path, text, words):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(TraceError, match=words) as error:
        read_trace(path)
    assert error.value.hint


def test_a_trace_that_is_not_there_is_told_in_words(tmp_path):
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none.csv")


@pytest.mark.skipif(not TRACES.exists(), reason="real traces are not here")
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("azure_llm_2023/AzureLLMInferenceTrace_code.csv", 8819),
        ("azure_llm_2023/AzureLLMInferenceTrace_conv.csv", 19366),
        ("mooncake_fast25/conversation_trace.jsonl", 12031),
    ],
)
def test_real_traces_are_read_whole(name, number):
    asks = read_trace(TRACES / name)
    assert len(asks) == number
    assert all(later.at_s >= earlier.at_s for earlier, later in pairwise(asks))


def test_azure_times_are_real_gaps():
    path = TRACES / "azure_llm_2023/AzureLLMInferenceTrace_conv.csv"
    if not path.exists():
        pytest.skip("real traces are not here")
    assert read_trace(path, 2)[1].at_s == pytest.approx(4.314579, abs=1e-6)


# --- prompts


def test_prompts_have_exact_counts_and_share_what_they_should():
    prompts = Prompts(pool=tuple(range(100, 200)), seed=1, as_text=False)
    one, two = (prompts.of(Ask(number=number, prompt_tokens=20, output_tokens=1, shared_tokens=12)) for number in (0, 1))
    assert len(one) == len(two) == 20 and one[:12] == two[:12] and one[12:] != two[12:]
    assert prompts.of(Ask(number=0, prompt_tokens=20, output_tokens=1, shared_tokens=12)) == one


@settings(max_examples=30)
@given(st.integers(1, 60), st.lists(st.integers(0, 5), max_size=6))
def test_prompts_of_blocks_begin_alike_where_their_blocks_do(length, blocks):
    prompts = Prompts(pool=tuple(range(50)), seed=1, as_text=False)
    one = prompts.of(Ask(number=1, prompt_tokens=length, output_tokens=1, blocks=tuple(blocks), block_tokens=8))
    two = prompts.of(Ask(number=2, prompt_tokens=60, output_tokens=1, blocks=(*blocks, 9), block_tokens=8))
    shared = min(length, 8 * len(blocks))
    assert len(one) == length and one[:shared] == two[:shared]


def test_loads_of_one_test_share_no_prompts():
    prompts = Prompts(pool=tuple(range(500)), seed=1, as_text=False)
    asks = make_asks(Lengths(), 2, 0)
    assert prompts.of(numbered(asks, 0)[0]) != prompts.of(numbered(asks, 1000)[0])


# --- measures


def sample(arrival_s: float, texts_s: list[float], tokens: int | None = None, error: str | None = None) -> Sample:
    ask = Ask(number=0, prompt_tokens=3, output_tokens=len(texts_s))
    end_s = texts_s[-1] if texts_s else arrival_s + 1
    return Sample(ask=ask, arrival_s=arrival_s, sent_s=arrival_s, texts_s=texts_s, end_s=end_s, num_output_tokens=tokens, error=error)


def test_the_definitions_hold_to_the_letter():
    one = sample(1.0, [1.5, 1.6, 1.9], tokens=3)
    assert one.ttft_s == pytest.approx(0.5) and one.e2e_s == pytest.approx(0.9) and one.tpot_s == pytest.approx(0.2)
    point = load_point([one, sample(0.0, [], error="429")], Objectives(ttft_s=0.6), load={"label": "x"}, num_warmup_requests=0, client=COST)
    assert point.wall_s == pytest.approx(1.9) and point.output_tokens_per_s == pytest.approx(3 / 1.9)
    assert point.num_completed == 1 and point.num_good == 1 and point.errors == {"429": 1}
    assert point.itl is not None and point.itl.max_s == pytest.approx(0.3) and point.itl.num_values == 2
    assert point.goodput_requests_per_s == pytest.approx(1 / 1.9)


def test_goodput_wants_every_objective():
    one = sample(0.0, [0.5, 1.5], tokens=2)
    assert is_good(one, Objectives(ttft_s=0.5, tpot_s=1.0, e2e_s=1.5))
    for missed in (Objectives(ttft_s=0.4), Objectives(tpot_s=0.9), Objectives(e2e_s=1.4)):
        assert not is_good(one, missed)
    assert not is_good(sample(0.0, [0.1], error="timeout"), Objectives())
    assert is_good(sample(0.0, [0.5], tokens=1), Objectives(tpot_s=0.001))


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=200))
def test_percentiles_are_in_order_and_within_the_values(values):
    found = latency(values)
    assert found is not None
    assert min(values) - 1e-5 <= found.p50_s <= found.p90_s <= found.p95_s <= found.p99_s <= found.max_s <= max(values) + 1e-5
    assert len(found.curve_s) == 101


def test_requests_in_flight_end_at_none():
    steps = in_flight([sample(0.01 * number, [0.01 * number + 0.5]) for number in range(400)])
    assert len(steps) <= 302 and steps[-1][1] == 0 and max(number for _, number in steps) == pytest.approx(50, abs=3)


# --- against a server


def _notes(test: LoadTest) -> list[str]:
    """Less what a busy machine adds."""
    return [note for note in test.notes if CLIENT_IN_DOUBT not in note]


def test_a_closed_loop_keeps_so_many_requests_on_their_way():
    with serving(Script(gap_s=0.005)) as script:
        test = play(closed(script.url, clients=3, requests=9, num_warmup_requests=0))
    [point] = test.points
    assert script.most_at_once == 3
    assert point.num_completed == 9 and point.num_output_tokens == 36 and point.num_prompt_tokens == 90 and point.counted_by == "usage"
    assert not point.errors and not _notes(test)
    assert all(len(body["prompt"]) == 10 and body["ignore_eos"] for body in script.bodies)
    assert max(number for _, number in point.in_flight) == 3


def test_warm_up_requests_are_left_out():
    with serving(Script()) as script:
        [point] = play(closed(script.url, requests=4, num_warmup_requests=5)).points
    assert len(script.bodies) == 9 and point.num_requests == 4 and point.num_warmup_requests == 5


def test_an_open_loop_waits_for_nobody_and_counts_from_the_intended_arrival():
    asks = [Ask(number=number, prompt_tokens=3, output_tokens=2, at_s=0.0) for number in range(12)]
    with serving(Script(first_gap_s=0.2)) as script:
        order = Order(url=script.url, loads=[Load(label="burst", asks=asks)], workload="burst", num_warmup_requests=0)
        [point] = play(order).points
    assert script.most_at_once == 12
    assert point.ttft is not None and point.ttft.p50_s >= 0.2
    assert point.client.send_lag_p99_s >= 0


def test_chat_prompts_have_exact_counts_too():
    with serving(Script(reply="a b c")) as script:
        test = play(closed(script.url, requests=2, tokens=3, endpoint=Endpoint.CHAT, num_warmup_requests=0))
    # Three tokens of the template beside seven words.
    assert all(len(body["messages"][0]["content"].split()) == 7 for body in script.bodies)
    [point] = test.points
    assert point.num_output_tokens == 3 * 2 and point.num_events_per_token == pytest.approx(1)


def test_failures_are_counted_by_kind_and_the_others_go_on():
    with serving(Script(fail={1: 429, 2: 500})) as script:
        kept: list[Sample] = []
        [point] = play(closed(script.url, clients=1, requests=5, num_warmup_requests=0), lambda label, samples: kept.extend(samples)).points
    assert point.errors == {"429": 1, "500": 1} and point.num_completed == 3
    assert {sample.detail for sample in kept if sample.error} == {"scripted 429", "scripted 500"}


@pytest.mark.parametrize(("script", "kind"), [(Script(cut_after=2), "connection"), (Script(error_after=2), "error event"), (Script(first_gap_s=5), "timeout")])
def test_answers_that_break_off_are_failures(script, kind):
    with serving(script):
        [point] = play(closed(script.url, clients=1, requests=1, num_warmup_requests=0, timeout_s=0.3)).points
    assert point.errors == {kind: 1} and point.num_completed == 0 and point.output_tokens_per_s == 0


def test_a_connection_that_was_closed_in_silence_is_no_failure():
    with serving(Script(drops_kept_lines=True)) as script:
        [point] = play(closed(script.url, clients=2, requests=60, num_warmup_requests=0)).points
    assert point.num_completed == 60 and not point.errors


def test_what_a_server_does_not_tell_is_said():
    with serving(Script(usage=False, tokenizer=False)) as script:
        test = play(closed(script.url, requests=2, num_warmup_requests=0))
    assert test.points[0].counted_by == "events" and test.points[0].num_output_tokens == 8
    assert len(_notes(test)) == 2


def test_a_server_that_refuses_everything_is_told_at_once():
    with serving(Script(fail=dict.fromkeys(range(10), 400))) as script, pytest.raises(ServerError, match="scripted 400"):
        play(closed(script.url))


@pytest.mark.parametrize(("model", "key", "words"), [("other", None, "no model 'other'"), (None, "wrong", "401")])
def test_a_wrong_model_or_key_is_told_in_words(model, key, words):
    with serving(Script(key="right" if key else None)) as script, pytest.raises(ServerError, match=words) as error:
        play(closed(script.url, model=model, api_key=key))
    assert error.value.hint


def test_lengths_beyond_the_context_are_refused_and_cuts_are_said():
    asks = [Ask(number=number, prompt_tokens=tokens, output_tokens=4) for number, tokens in enumerate((8, 600))]
    order = Order(url="", loads=[Load(label="1 client", asks=asks, num_clients=1)], workload="w", num_warmup_requests=0)
    with serving(Script()) as script:
        with pytest.raises(ServerError, match="1100 tokens, and scripted at .* takes 512 at most") as error:
            play(replace(order, url=script.url, lengths=(1000, 100)))
        assert "--prompt-tokens 412 at most" in (error.value.hint or "")
        assert "512 tokens is too short for 1 of the 2 requests" in _notes(play(replace(order, url=script.url)))[0]


def test_a_client_that_wakes_up_late_says_so(monkeypatch):
    late = COST.model_copy(update={"lag_p99_s": 0.021})
    monkeypatch.setattr(Watch, "cost", lambda watch, samples: late)
    with serving(Script()) as script:
        assert any(CLIENT_IN_DOUBT in note for note in play(closed(script.url, requests=1, num_warmup_requests=0)).notes)


def test_nobody_there_is_told_in_words():
    with pytest.raises(ServerError, match="cannot be reached") as error:
        play(closed("127.0.0.1:9"))
    assert "colossus serve" in (error.value.hint or "") and "ssl" not in str(error.value)


@pytest.mark.parametrize("given", ["127.0.0.1:80", "http://127.0.0.1:80/", "http://127.0.0.1:80/v1", "http://127.0.0.1:80/v1/"])
def test_addresses_are_taken_as_people_write_them(given):
    assert base_url(given) == "http://127.0.0.1:80"


def test_a_result_survives_its_json():
    with serving(Script()) as script:
        test = play(closed(script.url, objectives=Objectives(ttft_s=1.0)))
    assert LoadTest.from_data(json.loads(test.to_json()), origin="test") == test
