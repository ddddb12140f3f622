"""The engine's host side, on a device that only keeps and reads tokens: whatever is mixed, each request gets its own answer."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.nn.paged import page_bytes
from colossus.policy import batching
from colossus.serve import engine as engine_module
from colossus.serve.engine import Engine
from colossus.serve.options import EngineOptions
from colossus.serve.request import Finish, Output, Request, Sampling
from colossus.spec.errors import ColossusError, InfeasibleError
from colossus.spec.model import ModelCard
from tests.serve.fake_device import VOCAB_SIZE, FakePrograms, answer_to, next_token

CARD = ModelCard(vocab_size=VOCAB_SIZE, num_layers=1, model_dim=2, num_heads=1, num_kv_heads=1, head_dim=2, ffn_dim=2, max_sequence_tokens=160)
MODEL: Any = SimpleNamespace(name="fake", card=CARD, load_params=dict)


@pytest.fixture(autouse=True)
def fake_device(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch)


def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "make_decoder", lambda *_, **__: SimpleNamespace(card=CARD))
    monkeypatch.setattr(engine_module, "Programs", FakePrograms)


def make_engine(num_pages: int = 64, **options: Any) -> Engine:
    chosen = {"max_running": 4, "max_step_tokens": 24, "kv_bytes": (num_pages + 1) * page_bytes(CARD, "float32")} | options
    return Engine(MODEL, EngineOptions(model=Path("fake"), **chosen))


def ask(name: str, prompt: tuple[int, ...], **sampling: Any) -> Request:
    return Request(id=name, prompt=prompt, sampling=Sampling(**({"max_tokens": 10} | sampling)))


def run(engine: Engine, most_steps: int = 2000) -> dict[str, list[Output]]:
    outputs: dict[str, list[Output]] = {}
    for _ in range(most_steps):
        if not engine.has_work:
            return outputs
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
    raise AssertionError("the engine does not end")


def tokens_of(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def assert_empty(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.num_used_pages, stats.num_running, stats.num_waiting) == (0, 0, 0)
    assert len(engine._slots.free) == engine._options.max_running


@st.composite
def workloads(draw: Any) -> dict[str, Any]:
    """Options, requests with shared beginnings, when each comes, and whose client leaves when."""
    lengths = st.integers(1, 70)
    requests = [
        {
            "name": str(number),
            "own": draw(lengths),
            "shared": draw(st.sampled_from([0, 0, 20, 50])),
            "max_tokens": draw(st.integers(1, 40)),
            "seed": draw(st.integers(0, 3)),
            "priority": draw(st.integers(0, 2)),
            "owner": draw(st.sampled_from("ab")),
            "scored": draw(st.sampled_from([None, None, 1])),
            "comes": draw(st.integers(0, 30)),
            "leaves": draw(st.none() | st.none() | st.integers(0, 60)),
        }
        for number in range(draw(st.integers(1, 9)))
    ]
    options = {
        "num_pages": draw(st.sampled_from([8, 10, 14, 64])),
        "max_running": draw(st.integers(1, 5)),
        "max_step_tokens": draw(st.sampled_from([5, 16, 64])),
        "max_fused_steps": draw(st.sampled_from([1, 2, 8])),
        "num_draft_tokens": draw(st.sampled_from([0, 0, 3])),
        "prefix_caching": draw(st.booleans()),
        "policy": draw(st.sampled_from(["fcfs", "priority", "shortest", "fair"])),
    }
    return {"options": options, "requests": requests, "fuses": draw(st.booleans()), "hurries": draw(st.booleans())}


def test_answers_under_way_do_not_wait_long_for_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do prompts for ever: a slow device reads them in small steps beside an answer, and in whole ones alone."""
    monkeypatch.setattr(batching, "MIN_STEP_TOKENS", 16)
    engine = make_engine(max_running=2, max_step_tokens=64)
    engine._measure = lambda flight: None  # type: ignore[method-assign]
    engine._token_s = 1.0
    plans: list[int] = []
    plan = engine._scheduler.plan
    engine._scheduler.plan = lambda *given: _noted(plan(*given), plans)  # type: ignore[method-assign]
    prompts = [tuple((place + first) % VOCAB_SIZE for place in range(50)) for first in range(2)]
    engine.add(ask("a", prompts[0], max_tokens=30))
    engine.step()
    engine.add(ask("b", prompts[1], max_tokens=2))
    outputs = run(engine)
    assert plans[0] == 50 and max(plans[1:]) == 16 and sum(count > 2 for count in plans[1:]) == 4
    assert all(tokens_of(outputs[name]) == answer_to(prompt, most, 0) for name, prompt, most in (("a", prompts[0], 30), ("b", prompts[1], 2)))


@pytest.mark.parametrize("ragged", [False, True])
def test_tokens_are_timed_where_padding_takes_no_time(monkeypatch: pytest.MonkeyPatch, ragged: bool) -> None:
    """Else fewer of them would seem slower, and the budget would shrink for nothing."""
    monkeypatch.setattr(engine_module, "make_decoder", lambda *_, **__: SimpleNamespace(card=CARD, ragged=ragged))
    engine = make_engine(max_step_tokens=128)
    engine.add(ask("a", tuple(place % VOCAB_SIZE for place in range(100))))
    run(engine)
    assert (engine._token_s is not None) is ragged


def test_a_cache_taken_unasked_keeps_to_the_memory_granted() -> None:
    own_bytes = psutil.Process().memory_info().rss
    sizes = [make_engine(kv_bytes=None, max_running=4096, max_step_tokens=4096, host_memory_bytes=own_bytes + spare).info() for spare in (2**23, 2**24)]
    assert all(info.cache_bytes <= spare // 8 for info, spare in zip(sizes, (2**23 * 2, 2**24 * 2), strict=True))
    assert sizes[0].num_pages < sizes[1].num_pages


def _noted(plan: Any, plans: list[int]) -> Any:
    if plan is not None:
        plans.append(int(plan.counts.sum()))
    return plan


@given(workload=workloads())
@settings(max_examples=200, deadline=None)
def test_every_request_gets_its_own_answer_whatever_is_around_it(workload: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        _fake(monkeypatch)
        engine = make_engine(**workload["options"])
        if workload["fuses"]:
            engine._measure = lambda flight: engine._step_s.update(dict.fromkeys(range(9), 1e-4))  # type: ignore[method-assign]
        if workload["hurries"]:  # steps beside answers under way are as short as they may be
            monkeypatch.setattr(batching, "MIN_STEP_TOKENS", 3)
            engine._token_s = 1e9
        prompts, outputs = _play(engine, workload["requests"])
    assert_empty(engine)
    for asked in workload["requests"]:
        ended = outputs[asked["name"]]
        assert [output.finish for output in ended[:-1]] == [None] * (len(ended) - 1)
        prompt, most = prompts[asked["name"]], engine.info().max_sequence_tokens
        expected = answer_to(prompt, min(asked["max_tokens"], most - len(prompt)), asked["seed"])
        if ended[-1].finish is Finish.ABORT:
            assert tokens_of(ended) == expected[: len(tokens_of(ended))]
        else:
            assert ended[-1].finish is Finish.LENGTH
            assert tokens_of(ended) == expected
            scores = [(score.token, score.logprob) for score in ended[0].prompt_logprobs or ()]
            assert scores == ([(token, next_token(list(prompt[:place]))) for place, token in enumerate(prompt) if place] if asked["scored"] else [])


def _play(engine: Engine, requests: list[dict[str, Any]]) -> tuple[dict[str, tuple[int, ...]], dict[str, list[Output]]]:
    generator = random.Random(0)
    shared = [generator.randrange(VOCAB_SIZE) for _ in range(50)]
    prompts = {asked["name"]: tuple(shared[: asked["shared"]] + [generator.randrange(VOCAB_SIZE) for _ in range(asked["own"])]) for asked in requests}
    prompts = {name: prompt[: min(len(prompt), engine.info().max_sequence_tokens - 1)] for name, prompt in prompts.items()}
    outputs: dict[str, list[Output]] = {asked["name"]: [] for asked in requests}
    for step in range(3000):
        for asked in requests:
            if asked["comes"] == step:
                sampling = Sampling(max_tokens=asked["max_tokens"], seed=asked["seed"], num_prompt_logprobs=asked["scored"])
                own = {"owner": asked["owner"], "priority": asked["priority"], "arrival_s": 1e9 + step}
                engine.add(Request(id=asked["name"], prompt=prompts[asked["name"]], sampling=sampling, **own))
            if asked["leaves"] is not None and asked["comes"] + asked["leaves"] == step:
                engine.abort(asked["name"])
        for output in engine.step():
            outputs[output.id].append(output)
        if step > 100 and not engine.has_work:
            return prompts, outputs
    raise AssertionError("the engine does not end")


def test_guesses_that_come_true_save_steps() -> None:
    prompt = tuple([5, 6, 7] * 10)
    plain, guessing = make_engine(), make_engine(num_draft_tokens=3)
    for engine in (plain, guessing):
        engine.add(ask("a", prompt, max_tokens=60))
    answers = [tokens_of(run(engine)["a"]) for engine in (plain, guessing)]
    assert answers[0] == answers[1] == answer_to(prompt, 60)
    stats = guessing.stats()
    assert 0 < stats.num_accepted_tokens <= stats.num_drafted_tokens
    assert stats.num_steps < plain.stats().num_steps


def test_a_shared_beginning_is_computed_once() -> None:
    engine = make_engine()
    prefix = tuple(range(48))
    for number in range(4):
        engine.add(ask(str(number), (*prefix, number), max_tokens=1))
    outputs = run(engine)
    assert sorted(outputs[str(number)][0].num_cached_tokens or 0 for number in range(4)) == [0, 48, 48, 48]
    stats = engine.stats()
    assert (stats.num_prompt_tokens, stats.num_cached_tokens) == (49 + 3, 144)
    engine.reset_prefix_cache()
    assert engine.stats().num_cached_pages == 0
    engine.add(ask("again", prefix, max_tokens=1))
    assert run(engine)["again"][0].num_cached_tokens == 0


def test_a_salt_keeps_prefixes_apart() -> None:
    engine = make_engine()
    for salt in ("", "a", "b", "a"):
        engine.add(Request(id=f"x{salt}", prompt=tuple(range(40)), sampling=Sampling(max_tokens=1), cache_salt=salt))
        cached = run(engine)[f"x{salt}"][0].num_cached_tokens
    assert cached == 32
    assert engine.stats().num_cached_tokens == 32


def test_an_answer_is_a_prefix_for_the_next_turn() -> None:
    engine = make_engine()
    prompt = tuple(range(20))
    engine.add(ask("first", prompt, max_tokens=20))
    answer = tokens_of(run(engine)["first"])
    engine.add(ask("second", (*prompt, *answer, 1, 2), max_tokens=1))
    assert run(engine)["second"][0].num_cached_tokens == 32


def test_a_prompt_that_is_all_cached_still_draws() -> None:
    engine = make_engine()
    prompt = tuple(range(32))
    for name in ("a", "b"):
        engine.add(ask(name, prompt, max_tokens=3))
        output = run(engine)[name]
        assert tokens_of(output) == answer_to(prompt, 3)
    assert output[0].num_cached_tokens == 16


def test_preemption_keeps_what_was_drawn() -> None:
    engine = make_engine(num_pages=10, prefix_caching=False)
    prompts = {str(number): tuple(range(number, number + 20)) for number in range(4)}
    for name, prompt in prompts.items():
        engine.add(ask(name, prompt, max_tokens=60))
    outputs = run(engine)
    assert engine.stats().num_preemptions > 0
    for name, prompt in prompts.items():
        assert tokens_of(outputs[name]) == answer_to(prompt, 60)
    assert_empty(engine)


def test_steps_keep_to_the_budget_and_decoding_goes_on_beside_a_long_prompt() -> None:
    engine = make_engine(max_step_tokens=16, max_fused_steps=1)
    engine.add(ask("short", (1, 2, 3), max_tokens=30))
    engine.step()
    engine.add(ask("long", tuple(range(50)) * 2, max_tokens=1))
    outputs = run(engine)
    assert all(key.num_tokens <= 17 for key in engine._programs.steps)  # type: ignore[attr-defined]
    assert len(outputs["short"]) == 30  # a token with every step


def test_a_stop_token_ends_the_answer() -> None:
    engine, prompt = make_engine(), (1, 2, 3, 4)
    expected = answer_to(prompt, 20)
    stop = expected[8]
    engine.add(ask("a", prompt, max_tokens=20, stop_token_ids=(stop,)))
    outputs = run(engine)["a"]
    assert tokens_of(outputs) == expected[: expected.index(stop) + 1]
    assert outputs[-1].finish is Finish.STOP
    assert_empty(engine)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ask("a", ()), "no tokens"),
        (ask("a", tuple(range(50)) * 4), "may have 160"),
        (ask("a", (1, 50)), "from 0 to 49"),
        (ask("a", (1,), top_k=0), "top_k must be 1 or more; given 0"),
        (ask("a", (1,), temperature=-1.0), "temperature"),
        (ask("a", (1,), num_logprobs=21), "at most 20"),
        (ask("a", (1,), logit_bias={99: 1.0}), "logit_bias"),
        (ask("a", (1,), stop_token_ids=tuple(range(33))), "at most 32 stop tokens"),
        (ask("a", (1,), stop_token_ids=(2**40,)), "stop tokens must be from 0 to 49"),
        (ask("a", (1,), min_tokens=2**40, stop_token_ids=(1,)), "min_tokens must be from 0 to max_tokens"),
        (ask("a", (1,), presence_penalty=float("nan")), "finite"),
        (ask("a", (1,), logit_bias={1: float("inf")}), "finite"),
    ],
)
def test_what_cannot_be_served_is_said_and_harms_nobody(request_: Request, words: str) -> None:
    engine = make_engine()
    engine.add(ask("other", (1, 2), max_tokens=3))
    engine.add(request_)
    outputs = run(engine)
    assert outputs["a"][0].finish is Finish.ERROR
    assert words in (outputs["a"][0].error or "")
    assert tokens_of(outputs["other"]) == answer_to((1, 2), 3)


def test_a_full_context_ends_the_answer() -> None:
    engine = make_engine()
    engine.add(ask("a", tuple(range(40)) * 3, max_tokens=100))
    outputs = run(engine)["a"]
    assert (len(tokens_of(outputs)), outputs[-1].finish) == (40, Finish.LENGTH)


def test_an_abort_frees_everything_at_once() -> None:
    engine = make_engine()
    for name in "abcdef":
        engine.add(ask(name, tuple(range(30)), max_tokens=50))
    for _ in range(5):
        engine.step()
    for name in "abcdefg":
        engine.abort(name)
    assert engine.stats().num_used_pages == 0
    outputs = run(engine)
    assert {name: [output.finish for output in ended] for name, ended in outputs.items()} == {name: [Finish.ABORT] for name in "abcdef"}
    assert_empty(engine)


def test_no_tokens_asked_none_given() -> None:
    engine = make_engine()
    engine.add(ask("a", (1, 2), max_tokens=0))
    outputs = run(engine)["a"]
    assert [(output.tokens, output.finish) for output in outputs] == [((), Finish.LENGTH)]


def test_embeddings_take_turns_with_answers() -> None:
    engine = make_engine(max_step_tokens=16)
    engine.add(ask("answer", (1, 2), max_tokens=20))
    for name in ("e", "f"):
        engine.add(Request(id=name, prompt=tuple(range(40)), sampling=Sampling(max_tokens=0), embed=True))
    outputs = run(engine)
    length = (sum(range(40)) ** 2 + 40**2) ** 0.5
    for name in ("e", "f"):
        assert outputs[name][-1].embedding == pytest.approx((sum(range(40)) / length, 40 / length))
    assert tokens_of(outputs["answer"]) == answer_to((1, 2), 20)


def test_a_preempted_request_runs_before_those_behind_it() -> None:
    engine = make_engine(num_pages=9, prefix_caching=False)
    for number in range(4):
        engine.add(Request(id=str(number), prompt=tuple(range(16)), sampling=Sampling(max_tokens=50), arrival_s=1e9 + number))
    ends = []
    while engine.has_work:
        ends += [output.id for output in engine.step() if output.finish]
    assert ends == ["0", "1", "2", "3"]


@pytest.mark.parametrize("free_bytes", [1_000_000_000, 1_010_000_000, 24_000_000_000])
def test_the_cache_takes_a_small_part_of_the_host_unasked_and_the_same_at_the_next_start(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    monkeypatch.setattr(engine_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=free_bytes))
    card = CARD.model_copy(update={"num_layers": 64, "num_kv_heads": 64, "num_heads": 64, "head_dim": 64, "max_sequence_tokens": 4096})
    num_pages, max_tokens = engine_module._sizes(card, EngineOptions(model=Path("fake")))
    assert free_bytes / 16 < num_pages * page_bytes(card, "float32") <= free_bytes / 8 or num_pages == 1
    assert num_pages.bit_count() == 1
    assert max_tokens == min(4096, (num_pages - 1) * 16)


def test_a_cache_that_is_too_small_says_what_suffices() -> None:
    with pytest.raises(InfeasibleError) as caught:
        engine_module._sizes(CARD, EngineOptions(model=Path("fake"), kv_bytes=1))
    enough = float(caught.value.hint.removeprefix("--kv-gib ").split()[0])
    assert engine_module._sizes(CARD, EngineOptions(model=Path("fake"), kv_bytes=int(enough * 2**30)))[1] == CARD.max_sequence_tokens


@pytest.mark.parametrize(("options", "words"), [({"max_step_tokens": 2}, "at least max_running"), ({"policy": "fscf"}, "fcfs"), ({"num_pages": 0}, "cache")])
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ColossusError) as raised:
        make_engine(**options)
    assert words in f"{raised.value} {raised.value.hint}"
