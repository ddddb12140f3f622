"""Chat by the real openai client."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from colossus.serve.api.chat_body import ChatBody
from colossus.serve.api.sampling import Bounds, make_sampling
from colossus.serve.defaults import DefaultSampling
from tests.serve.api.conftest import World

ASK = [{"role": "user", "content": "hi"}]


def test_an_answer_has_text_reason_and_usage(world: World) -> None:
    answer = world.client.chat.completions.create(model="tiny", messages=ASK)
    assert answer.choices[0].message.content == "hello world"
    assert answer.choices[0].finish_reason == "stop"
    request = world.backend.requests[0]
    assert world.model.tokenizer.decode(list(request.prompt), skip_special_tokens=False) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert answer.usage.prompt_tokens == len(request.prompt)
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert request.sampling.max_tokens == 1024 - len(request.prompt)


def test_a_stream_is_the_same_text(world: World) -> None:
    world.backend.say = lambda request: "größe 東京 😀 done"
    chunks = list(world.client.chat.completions.create(model="tiny", messages=ASK, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "größe 東京 😀 done"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.prompt_tokens == len(world.backend.requests[0].prompt)
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("per_output", [1, 3, 50])
def test_stop_strings_never_leak(world: World, per_output: int) -> None:
    world.backend.per_output = per_output
    world.backend.say = lambda request: "hello world END and more"
    parts = [
        chunk.choices[0].delta.content or "" for chunk in world.client.chat.completions.create(model="tiny", messages=ASK, stream=True, stop=["END", "zzz"])
    ]
    assert "".join(parts) == "hello world "
    assert world.backend.aborted == ([world.backend.requests[0].id] if per_output < 50 else [])


def test_an_unknown_model_is_404(world: World) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'") as caught:
        world.client.chat.completions.create(model="gpt-99", messages=ASK)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_n_answers_whole_and_streamed(world: World) -> None:
    world.backend.say = lambda request: f"answer {request.id[-1]}"
    whole = world.client.chat.completions.create(model="tiny", messages=ASK, n=3)
    assert [choice.message.content for choice in whole.choices] == ["answer 0", "answer 1", "answer 2"]
    assert [request.shares_prompt for request in world.backend.requests] == [False, True, True]
    assert whole.usage.prompt_tokens_details.cached_tokens == 3 and whole.usage.completion_tokens > 3 * 2
    texts = ["", "", ""]
    for chunk in world.client.chat.completions.create(model="tiny", messages=ASK, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["answer 0", "answer 1", "answer 2"]


def test_logprobs_go_with_their_text(world: World) -> None:
    world.backend.say = lambda request: "größe 😀 END more"
    whole = world.client.chat.completions.create(model="tiny", messages=ASK, logprobs=True, top_logprobs=2, stop="END")
    tokens = whole.choices[0].logprobs.content
    assert whole.choices[0].message.content == "größe 😀 "
    assert bytes(byte for token in tokens for byte in token.bytes).decode() == "größe 😀 END"  # " END" is one token, and its space is out
    assert [top.logprob for top in tokens[0].top_logprobs] == [-0.5, -1.5]
    parts = list(world.client.chat.completions.create(model="tiny", messages=ASK, logprobs=True, top_logprobs=3, stop="END", stream=True))
    streamed = [token for part in parts if part.choices[0].logprobs for token in part.choices[0].logprobs.content]
    assert [token.bytes for token in streamed] == [token.bytes for token in tokens]
    assert streamed[0].top_logprobs[2].logprob == -9999.0


def test_stop_reason_and_stop_tokens(world: World) -> None:
    world.backend.say = lambda request: "hello END"
    answer = world.client.chat.completions.create(model="tiny", messages=ASK, stop="END", extra_body={"include_stop_str_in_output": True})
    assert answer.choices[0].message.content == "hello END" and answer.choices[0].model_extra["stop_reason"] == "END"
    named = world.client.chat.completions.create(model="tiny", messages=ASK, extra_body={"stop_token_ids": [77]})
    assert named.choices[0].message.content == "hello END" and named.choices[0].model_extra["stop_reason"] == 77
    late = world.client.chat.completions.create(model="tiny", messages=ASK, stop="hello", extra_body={"min_tokens": 3})
    assert late.choices[0].message.content == "hello END"


def test_special_tokens_are_written_only_on_demand(world: World) -> None:
    world.backend.say = lambda request: [*world.model.tokenizer.encode("a<|im_start|>b").ids]
    assert world.client.chat.completions.create(model="tiny", messages=ASK).choices[0].message.content == "ab"
    shown = world.client.chat.completions.create(model="tiny", messages=ASK, extra_body={"skip_special_tokens": False})
    assert shown.choices[0].message.content == "a<|im_start|>b"


def test_the_last_message_goes_on(world: World) -> None:
    messages = [*ASK, {"role": "assistant", "content": "Once upon "}]
    world.client.chat.completions.create(model="tiny", messages=messages, extra_body={"continue_final_message": True})
    assert world.model.tokenizer.decode(list(world.backend.requests[0].prompt), skip_special_tokens=False).endswith("assistant\nOnce upon ")


def test_parts_of_text_and_names_of_roles(world: World) -> None:
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    world.client.chat.completions.create(model="tiny", messages=messages)
    assert "<|im_start|>system\nx<|im_end|>\n<|im_start|>user\na\nb<|im_end|>" in world.model.tokenizer.decode(
        list(world.backend.requests[0].prompt), skip_special_tokens=False
    )


def test_the_async_client_and_many_at_once(world: World) -> None:
    world.backend.say = lambda request: f"number {len(request.prompt)}"

    async def one(client: openai.AsyncOpenAI, size: int) -> tuple[str, str]:
        messages = [{"role": "user", "content": "x" * size}]
        whole = await client.chat.completions.create(model="tiny", messages=messages)
        parts = [chunk.choices[0].delta.content or "" async for chunk in await client.chat.completions.create(model="tiny", messages=messages, stream=True)]
        return whole.choices[0].message.content, "".join(parts)

    async def all_of_them() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, size) for size in range(1, 30)))

    answers = asyncio.run(all_of_them())
    assert len(set(answers)) == 29 and all(whole == streamed for whole, streamed in answers)
    assert not world.backend.running


def test_the_streaming_helper(world: World) -> None:
    with world.client.chat.completions.stream(model="tiny", messages=ASK) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        assert "".join(deltas) == stream.get_final_completion().choices[0].message.content == "hello world"


def test_what_a_body_leaves_out_is_drawn_as_the_makers_say() -> None:
    own = DefaultSampling(temperature=0.2, top_p=0.9, top_k=40)
    bounds = Bounds(max_sequence_tokens=64, vocab_size=100, end_ids=frozenset(), default=own)

    def drawn(**said: Any) -> tuple[float, float | None, int | None]:
        body = ChatBody.model_validate({"messages": [{"role": "user", "content": "hi"}], **said})
        sampling = make_sampling(body, bounds, max_tokens=8, num_logprobs=None, grammar=None)
        return sampling.temperature, sampling.top_p, sampling.top_k

    assert drawn() == (0.2, 0.9, 40)
    assert drawn(temperature=1) == (1, 0.9, 40)
    assert drawn(temperature=0, top_p=1, top_k=0) == (0, None, None)
    assert drawn(top_p=0) == (0.2, None, 1)
