"""/v1/responses by the real openai client."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.serve.api.conftest import World

CALL = 'Let me see.\n<tool_call>{"name": "weather", "arguments": {"city": "東京"}}</tool_call>'
TOOL: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def test_text_whole(world: World) -> None:
    answer = world.client.responses.create(model="tiny", input="hi", instructions="be brief")
    assert answer.output_text == "hello world" and answer.status == "completed"
    assert answer.usage.input_tokens == len(world.backend.requests[0].prompt) and answer.usage.input_tokens_details.cached_tokens == 3
    assert "system\nbe brief" in world.model.tokenizer.decode(list(world.backend.requests[0].prompt))


def test_text_streamed(world: World) -> None:
    with world.client.responses.stream(model="tiny", input=[{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "hello world" == "".join(event.delta for event in events if event.type == "response.output_text.delta")
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_cut_answer_is_incomplete(world: World) -> None:
    answer = world.client.responses.create(model="tiny", input="hi", max_output_tokens=2)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"


def test_calls_and_their_results(world: World) -> None:
    world.backend.say = lambda request: CALL
    whole = world.client.responses.create(model="tiny", input="hi", tools=[TOOL])
    assert [item.type for item in whole.output] == ["message", "function_call"]
    assert whole.output_text == "Let me see." and whole.output[1].arguments == '{"city": "東京"}'
    with world.client.responses.stream(model="tiny", input="hi", tools=[TOOL]) as stream:
        streamed = [*stream][-1].response
    assert [(item.type, getattr(item, "arguments", None)) for item in streamed.output] == [("message", None), ("function_call", '{"city": "東京"}')]
    call = whole.output[1]
    items = [
        {"role": "user", "content": "hi"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    world.backend.say = lambda request: "It is sunny."
    assert world.client.responses.create(model="tiny", input=items, tools=[TOOL]).output_text == "It is sunny."
    prompt = world.model.tokenizer.decode(list(world.backend.requests[-1].prompt))
    assert '<tool_call>{"name": "weather", "arguments": {"city": "東京"}}</tool_call>' in prompt and "<tool_response>\nsunny" in prompt


def test_parsed_into_a_class(world: World) -> None:
    class Fox(BaseModel):
        color: str

    world.backend.say = lambda request: '{"color": "brown"}'
    assert world.client.responses.parse(model="tiny", input="hi", text_format=Fox).output_parsed == Fox(color="brown")
    assert world.backend.requests[0].sampling.grammar


def test_logprobs(world: World) -> None:
    answer = world.client.responses.create(model="tiny", input="hi", include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = answer.output[0].content[0].logprobs
    assert "".join(entry.token for entry in logprobs) == "hello world" and len(logprobs[0].top_logprobs) == 2


def test_nothing_is_stored(world: World) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is stored") as caught:
        world.client.responses.create(model="tiny", input="hi", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
