"""Whatever is mixed in its steps, an engine's answer is the whole network's, token for token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from colossus.serve import schedule
from colossus.serve.engine import Engine
from colossus.serve.request import Finish, Request, Sampling
from tests.serve.engines import ask, engine_for, is_greedy, logits_of, run, tokens_of
from tests.serve.models import CARDS

LLAMA = CARDS["llama"]
# One always, the others with the slow ones: each is compiled.
MARKED = [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in CARDS]


def prompts(lengths: list[int], shared: int = 0, seed: int = 0) -> list[tuple[int, ...]]:
    generator = np.random.default_rng(seed)
    prefix = generator.integers(0, 61, shared).tolist()
    return [tuple(prefix + generator.integers(0, 61, length).tolist()) for length in lengths]


def assert_greedy(engine: Engine, requests: list[Request], outputs: Any) -> None:
    for request in requests:
        answer = tokens_of(outputs[request.id])
        assert len(answer) == request.sampling.max_tokens
        assert is_greedy(engine._model.card, request.prompt, answer), request.id


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are fused however long they take."""
    monkeypatch.setattr(schedule, "_FUSED_S", 100.0)


@pytest.mark.parametrize("name", MARKED)
def test_greedy_answers_are_those_of_the_whole_network(name: str, fused: None) -> None:
    """Requests come and go, long prompts in chunks, some with a shared beginning."""
    engine = engine_for(CARDS[name])
    mixed = prompts([3, 40, 1, 17, 60, 5]) + prompts([2, 9, 30], shared=40, seed=1)
    requests = [ask(f"{name}{number}", prompt, max_tokens=9 + 5 * (number % 4)) for number, prompt in enumerate(mixed)]
    before = engine.stats().num_cached_tokens
    assert_greedy(engine, requests, run(engine, *requests, every=3))
    assert engine.stats().num_cached_tokens > before


def test_preempted_requests_answer_the_same() -> None:
    engine = engine_for(LLAMA, num_pages=9)
    requests = [ask(str(number), prompt, max_tokens=40) for number, prompt in enumerate(prompts([20, 30, 25, 18, 33]))]
    assert_greedy(engine, requests, run(engine, *requests))
    assert engine.stats().num_preemptions > 0


@pytest.mark.slow
def test_page_tables_of_several_sizes(fused: None) -> None:
    engine = engine_for(LLAMA, max_sequence_tokens=128)
    requests = [ask(str(number), prompt, max_tokens=25) for number, prompt in enumerate(prompts([3, 90, 20, 7, 60]))]
    assert_greedy(engine, requests, run(engine, *requests, every=4))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guesses_change_no_answer(temperature: float) -> None:
    plain, guessing = engine_for(LLAMA), engine_for(LLAMA, num_draft_tokens=3)
    repeating = [tuple(prompt * 6) for prompt in prompts([3, 4, 5])] + prompts([20, 31])
    requests = [ask(str(number), prompt, max_tokens=40, temperature=temperature, top_k=3, seed=number) for number, prompt in enumerate(repeating)]
    answers = [{name: tokens_of(ended) for name, ended in run(engine, *requests, every=2).items()} for engine in (plain, guessing)]
    assert answers[0] == answers[1]
    assert guessing.stats().num_accepted_tokens > 0
    assert guessing.stats().num_compilations == 0


def test_a_seed_alone_decides_what_is_drawn(fused: None) -> None:
    engine = engine_for(LLAMA)
    prompt = prompts([10])[0]
    one = ask("one", prompt, temperature=1.5, seed=7, max_tokens=30)
    alone = tokens_of(run(engine, one)["one"])
    crowd = [ask(str(number), other, temperature=1.0, seed=number, max_tokens=25, top_p=0.9) for number, other in enumerate(prompts([50, 3, 8, 20, 9]))]
    assert tokens_of(run(engine, *crowd[:3], one, *crowd[3:], every=2)["one"]) == alone
    again = ask("two", prompt, temperature=1.5, seed=8, max_tokens=30)
    assert tokens_of(run(engine, again)["two"]) != alone


def test_logprobs_are_those_of_the_network() -> None:
    engine, prompt = engine_for(LLAMA), prompts([11])[0]
    neighbour = ask("other", prompts([30], seed=5)[0], temperature=1.0, max_tokens=20)
    output = run(engine, neighbour, ask("a", prompt, num_logprobs=4, logit_bias={3: 2.0}, max_tokens=6, temperature=0.0))["a"]
    answer, entries = tokens_of(output), [entry for part in output for entry in part.logprobs or ()]
    assert [entry.token for entry in entries] == answer
    logits_tv = logits_of(LLAMA, [*prompt, *answer])[len(prompt) - 1 : -1]
    logprobs_tv = logits_tv - np.log(np.exp(logits_tv).sum(-1, keepdims=True))
    for own_v, entry in zip(logprobs_tv, entries, strict=True):
        order = np.argsort(-own_v)
        assert entry.logprob == pytest.approx(own_v[entry.token], abs=1e-3)
        assert [token for token, _ in entry.top] == order[:4].tolist()
        assert order[entry.rank] == entry.token


def test_a_prompt_is_scored_whole() -> None:
    """Though it comes in chunks, is cached already, and others decode beside it."""
    engine, prompt = engine_for(LLAMA), prompts([70])[0]
    scored = {"a": ask("a", prompt, num_prompt_logprobs=2, max_tokens=4), "b": ask("b", prompt, num_prompt_logprobs=0, max_tokens=0)}
    outputs = run(engine, ask("other", prompt, max_tokens=20), *scored.values(), every=4)
    assert is_greedy(LLAMA, prompt, tokens_of(outputs["a"]))
    assert outputs["b"][-1].finish is Finish.LENGTH
    logits_tv = logits_of(LLAMA, prompt)
    logprobs_tv = logits_tv - np.log(np.exp(logits_tv).sum(-1, keepdims=True))
    for name in scored:
        entries = outputs[name][0].prompt_logprobs
        assert entries is not None and [entry.token for entry in entries] == list(prompt[1:])
        np.testing.assert_allclose([entry.logprob for entry in entries], logprobs_tv[np.arange(69), prompt[1:]], atol=1e-3)


def test_a_prompt_is_scored_beside_guesses() -> None:
    engine, prompt = engine_for(CARDS["llama"], num_draft_tokens=3), [1, 2, 3] * 3
    alone, scored = (run(engine, ask("a", prompt, max_tokens=30, num_prompt_logprobs=wanted))["a"] for wanted in (None, 1))
    assert tokens_of(scored) == tokens_of(alone)


def test_an_embedding_is_the_mean_hidden_state() -> None:
    from colossus.nn.decoder import hidden_states
    from tests.serve.models import params_of

    engine, prompt = engine_for(LLAMA), prompts([50])[0]
    request = Request(id="e", prompt=prompt, sampling=Sampling(max_tokens=0), embed=True)
    got = run(engine, ask("other", prompt, max_tokens=5), request)["e"][-1].embedding
    hidden_td = np.asarray(hidden_states(params_of(LLAMA), np.asarray([prompt], np.int32), LLAMA)[0])[0]
    mean_d = hidden_td.mean(0)
    np.testing.assert_allclose(got, mean_d / np.linalg.norm(mean_d), atol=1e-4)


def test_edits_reach_the_row_they_belong_to() -> None:
    engine = engine_for(LLAMA)
    free, forced, banned = (ask(name, prompts([9])[0], max_tokens=12) for name in ("free", "forced", "banned"))
    plain = tokens_of(run(engine, free)["free"])
    forced = ask("forced", free.prompt, max_tokens=12, logit_bias={7: 1000.0})
    banned = ask("banned", free.prompt, max_tokens=12, logit_bias={plain[0]: -1000.0})
    outputs = run(engine, free, forced, banned)
    assert tokens_of(outputs["free"]) == plain
    assert tokens_of(outputs["forced"]) == [7] * 12
    assert plain[0] not in tokens_of(outputs["banned"])
    assert tokens_of(run(engine, free)["free"]) == plain  # in a slot that had a bias before


def test_penalties_count_the_answer_through_a_preemption() -> None:
    engine = engine_for(LLAMA, num_pages=9)
    prompt = prompts([20])[0]
    penalties = {"frequency_penalty": 1.5, "presence_penalty": 0.5, "repetition_penalty": 1.2}
    requests = [ask(str(number), prompt, max_tokens=40, **penalties) for number in range(4)]
    before = engine.stats().num_preemptions
    outputs = run(engine, *requests)
    assert engine.stats().num_preemptions > before
    expected = _penalized(prompt, 40, **penalties)
    for request in requests:
        assert tokens_of(outputs[request.id]) == expected


def _penalized(prompt: tuple[int, ...], num: int, *, frequency_penalty: float, presence_penalty: float, repetition_penalty: float) -> list[int]:
    answer: list[int] = []
    for _ in range(num):
        logits_v = logits_of(LLAMA, [*prompt, *answer])[-1].astype(np.float64)
        for token in {*prompt, *answer}:
            logits_v[token] = logits_v[token] / repetition_penalty if logits_v[token] > 0 else logits_v[token] * repetition_penalty
        for token in set(answer):
            logits_v[token] -= presence_penalty + frequency_penalty * answer.count(token)
        answer.append(int(logits_v.argmax()))
    return answer


def test_no_stop_token_before_min_tokens() -> None:
    engine, prompt = engine_for(LLAMA), prompts([9])[0]
    plain = tokens_of(run(engine, ask("a", prompt, max_tokens=20))["a"])
    stop = plain[2]
    outputs = run(engine, ask("a", prompt, max_tokens=20, stop_token_ids=(stop,), min_tokens=6))["a"]
    answer = tokens_of(outputs)
    assert len(answer) >= 6 and stop not in answer[:6]


class Staircase:
    """A grammar in which each token is above the one before; 60 is the top. In the place of ``Grammars`` and of its matcher."""

    error, is_done, last = None, False, -1

    def compile(self, _grammar: str) -> Staircase:
        return Staircase()

    def mask(self) -> np.ndarray:
        bits = np.zeros(64, bool)
        bits[self.last + 1 : 61] = True
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def accept(self, token: int) -> bool:
        self.last, self.is_done = token, token == 60
        return True


def test_a_grammar_binds_its_own_request_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_for(LLAMA)
    monkeypatch.setattr(engine._intake, "_grammars", Staircase())
    bound = [ask(name, prompt, max_tokens=62, grammar="staircase", temperature=0.5, seed=3) for name, prompt in zip("ab", prompts([9, 30]), strict=True)]
    free = ask("free", prompts([5])[0], max_tokens=40)
    outputs = run(engine, bound[0], free, bound[1], every=2)
    for name in "ab":
        answer = tokens_of(outputs[name])
        assert answer == sorted(set(answer)) and answer[-1] == 60
        assert outputs[name][-1].finish is Finish.STOP
    assert is_greedy(LLAMA, free.prompt, tokens_of(outputs["free"]))


@pytest.mark.parametrize("cache", ["bfloat16", "int8"])
@pytest.mark.slow
def test_smaller_caches_answer_too(cache: str) -> None:
    engine = engine_for(LLAMA, cache=cache)
    requests = [ask(str(number), prompt, max_tokens=20) for number, prompt in enumerate(prompts([30, 20]))]
    outputs = run(engine, *requests)
    assert [len(tokens_of(outputs[request.id])) for request in requests] == [20, 20]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama3-scaling", "mistral-window", "mixtral", "qwen3", "qwen3_moe"])
def test_answers_are_those_of_transformers(case: str, tmp_path: Any) -> None:
    """Greedy and long, from a folder that transformers wrote."""
    torch = pytest.importorskip("torch")
    from colossus.nn.hf import load_params, read_card
    from tests.nn.test_hf_transformers import save_model
    from tests.serve.engines import hurried
    from tests.serve.models import Loaded

    theirs = save_model(case, tmp_path)
    card = read_card(tmp_path)
    engine = hurried(Loaded("theirs", card, load_params(tmp_path, card)))
    asked = [tuple(token % card.vocab_size for token in prompt) for prompt in prompts([7, 40, 20], seed=3)]
    outputs = run(engine, *(ask(str(number), prompt, max_tokens=60) for number, prompt in enumerate(asked)), every=2)
    for number, prompt in enumerate(asked):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False, eos_token_id=None)[0, len(prompt) :].tolist()
        assert tokens_of(outputs[str(number)]) == expected
