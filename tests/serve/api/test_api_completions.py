"""Completions, embeddings and tokens by the real openai client."""

from __future__ import annotations

import openai
import pytest

from tests.serve.api.conftest import World
from tests.serve.api.doubles import send


def test_every_form_of_prompt(world: World) -> None:
    tokens = world.model.tokenizer.encode("the fox").ids
    for prompt, count in [("the fox", 1), (["the fox", "a dog"], 2), (tokens, 1), ([tokens, tokens], 2)]:
        answer = world.client.completions.create(model="tiny", prompt=prompt)
        assert [choice.text for choice in answer.choices] == ["hello world"] * count
        assert [choice.index for choice in answer.choices] == list(range(count))
    assert all(request.sampling.max_tokens == 16 for request in world.backend.requests)
    assert {request.prompt for request in world.backend.requests[:1]} == {tuple(tokens)}


def test_n_answers_have_seeds_of_their_own_and_the_first_that_of_one(world: World) -> None:
    world.client.completions.create(model="tiny", prompt="x", n=3, seed=7)
    world.client.completions.create(model="tiny", prompt="x", seed=7)
    seeds = [request.sampling.seed for request in world.backend.requests]
    assert seeds[0] == seeds[3] == 7 and len(set(seeds)) == 3


def test_echo_with_logprobs_covers_prompt_and_answer(world: World) -> None:
    whole = world.client.completions.create(model="tiny", prompt="the fox", echo=True, logprobs=2, max_tokens=5)
    logprobs = whole.choices[0].logprobs
    assert whole.choices[0].text.startswith("the fox") and "".join(logprobs.tokens) == whole.choices[0].text
    assert logprobs.token_logprobs[0] is None and set(logprobs.token_logprobs[1:]) == {-0.5}
    assert [whole.choices[0].text[at:].startswith(token) for at, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)] == [True] * len(
        logprobs.tokens
    )
    parts = list(world.client.completions.create(model="tiny", prompt="the fox", echo=True, logprobs=2, max_tokens=5, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert [offset for part in parts if part.choices[0].logprobs for offset in part.choices[0].logprobs.text_offset] == logprobs.text_offset


def test_scoring_a_text_draws_nothing(world: World) -> None:
    answer = world.client.completions.create(model="tiny", prompt="the fox", echo=True, logprobs=0, max_tokens=0)
    assert answer.choices[0].text == "the fox" and answer.usage.completion_tokens == 0 and answer.choices[0].finish_reason == "length"


def test_sampling_arrives_as_it_was_sent(world: World) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "stop_token_ids": [9], "priority": -3, "cache_salt": "s", "ignore_eos": True}
    world.client.completions.create(
        model="tiny", prompt="x", temperature=0.3, top_p=0.7, presence_penalty=1, frequency_penalty=-1, logit_bias={"5": -3}, extra_body=extra
    )
    request = world.backend.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.3, 0.7, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.2)
    assert sampling.logit_bias == {5: -3} and sampling.min_tokens == 2 and sampling.stop_token_ids == (9,)
    assert request.priority == -3 and request.cache_salt == "s"


@pytest.mark.parametrize(("fields", "param"), [({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of"), ({"max_tokens": 1030}, "prompt")])
def test_what_is_refused_says_so(world: World, fields: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        world.client.completions.create(model="tiny", prompt="x", **fields)
    assert caught.value.param == param


def test_embeddings_as_numbers_and_as_bytes(world: World) -> None:
    for form in ("float", "base64", openai.NOT_GIVEN):
        answer = world.client.embeddings.create(model="tiny", input=["one", "two"], encoding_format=form)
        assert len(answer.data) == 2
    assert answer.data[1].embedding == pytest.approx([0.6, 0.8, 0.0])
    assert all(request.embed for request in world.backend.requests)


def test_tokenize_and_back(world: World) -> None:
    text = "größe 😀<|im_end|>"
    told = send(f"{world.url}/tokenize", {"prompt": text, "return_token_strs": True}).data
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"]) and told["max_model_len"] == 1024
    assert send(f"{world.url}/detokenize", {"tokens": told["tokens"]}).data == {"prompt": text}
    chat = send(f"{world.url}/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).data
    assert world.model.tokenizer.decode(chat["tokens"], skip_special_tokens=False).endswith("<|im_start|>assistant\n")


def test_models(world: World) -> None:
    assert [model.id for model in world.client.models.list()] == ["tiny"]
    assert world.client.models.retrieve("tiny").owned_by == "colossus"
    with pytest.raises(openai.NotFoundError):
        world.client.models.retrieve("other/one")
