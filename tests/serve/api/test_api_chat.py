"""Chat by the real openai client."""

from __future__ import annotations

import openai
import pytest

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
