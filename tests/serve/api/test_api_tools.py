"""Tools and forms by the real openai client and its helpers."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.serve.api.conftest import World

ASK: list[Any] = [{"role": "user", "content": "How is the weather?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": name, "description": "of a city", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    for name in ("weather", "time")
]
CALLS = """Let me see.
<tool_call>
{"name": "weather", "arguments": {"city": "東京 </tool_call> {"}}
</tool_call>
<tool_call>
{"name": "time", "arguments": {}}
</tool_call>"""


def prompt(world: World) -> str:
    return world.model.tokenizer.decode(list(world.backend.requests[-1].prompt), skip_special_tokens=False)


def test_calls_are_found(world: World) -> None:
    world.backend.say = lambda request: CALLS
    choice = world.client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    assert [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls] == [
        ("weather", {"city": "東京 </tool_call> {"}),
        ("time", {}),
    ]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert "<tools>" in prompt(world) and world.backend.requests[0].sampling.grammar is None


@pytest.mark.parametrize("per_output", [1, 7, 200])
def test_calls_are_streamed(world: World, per_output: int) -> None:
    world.backend.say, world.backend.per_output = lambda request: CALLS, per_output
    with world.client.chat.completions.stream(model="tiny", messages=ASK, tools=TOOLS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        message = stream.get_final_completion().choices[0].message
    assert [event.name for event in done] == ["weather", "time"]
    assert message.content == "Let me see." and json.loads(message.tool_calls[0].function.arguments) == {"city": "東京 </tool_call> {"}


def test_one_call_where_only_one_is_wanted(world: World) -> None:
    world.backend.say = lambda request: CALLS
    choice = world.client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, parallel_tool_calls=False).choices[0]
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"]


def test_no_tools_where_none_may_be_called(world: World) -> None:
    world.backend.say = lambda request: CALLS
    choice = world.client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, tool_choice="none").choices[0]
    assert choice.message.content == CALLS and choice.message.tool_calls is None and "<tools>" not in prompt(world)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}])
def test_calls_that_must_come_are_held_by_a_grammar(world: World, choice: Any) -> None:
    world.backend.say = lambda request: '<tool_call>{"name": "time", "arguments": {"city": "x"}}</tool_call>'
    answer = world.client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, tool_choice=choice)
    grammar = world.backend.requests[0].sampling.grammar
    assert grammar is not None and "time" in grammar and ("weather" in grammar) == (choice == "required")
    assert answer.choices[0].message.tool_calls[0].function.name == "time" and answer.choices[0].message.content is None


def test_a_whole_round_with_results(world: World) -> None:
    world.backend.say = lambda request: CALLS
    message = world.client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "7 degrees"} for call in message.tool_calls]
    world.backend.say = lambda request: "Cold."
    answer = world.client.chat.completions.create(model="tiny", messages=[*ASK, message, *results], tools=TOOLS)
    assert answer.choices[0].message.content == "Cold." and answer.choices[0].finish_reason == "stop"
    assert prompt(world).count("<tool_response>\n7 degrees") == 2 and '{"name": "time", "arguments": {}}' in prompt(world)


class City(BaseModel):
    name: str
    people: int


def test_an_answer_parsed_into_a_class(world: World) -> None:
    world.backend.say = lambda request: '{"name": "Köln", "people": 1087863}'
    parsed = world.client.chat.completions.parse(model="tiny", messages=ASK, response_format=City)
    assert parsed.choices[0].message.parsed == City(name="Köln", people=1087863)
    assert "people" in (world.backend.requests[0].sampling.grammar or "")
    with world.client.chat.completions.stream(model="tiny", messages=ASK, response_format=City) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == City(name="Köln", people=1087863)


def test_a_call_parsed_into_a_class(world: World) -> None:
    world.backend.say = lambda request: '<tool_call>{"name": "City", "arguments": {"name": "Köln", "people": 1}}</tool_call>'
    parsed = world.client.chat.completions.parse(model="tiny", messages=ASK, tools=[openai.pydantic_function_tool(City)])
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == City(name="Köln", people=1)
    assert world.backend.requests[0].sampling.grammar is not None  # the tool is strict


@pytest.mark.parametrize(
    "extra",
    [
        {"response_format": {"type": "json_object"}},
        {"guided_json": {"type": "object"}},
        {"guided_json": '{"type": "object"}'},
        {"guided_regex": "a+b"},
        {"guided_choice": ["yes", "no"]},
        {"guided_grammar": 'start: "a" | "b"'},
        {"structured_outputs": {"regex": "a+"}},
        {"structured_outputs": {"choice": ["x"]}},
        {"structured_outputs": {"json": {"type": "integer"}}},
        {"structured_outputs": {"json_object": True}},
    ],
)
def test_forms_become_grammars(world: World, extra: dict[str, Any]) -> None:
    world.client.chat.completions.create(model="tiny", messages=ASK, extra_body=extra)
    assert world.backend.requests[0].sampling.grammar


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"type": "nonsense"}}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_regex": "a", "tools": TOOLS}, "guided_regex"),
        ({"guided_grammar": "start: <|nothere|>"}, "guided_grammar"),
        ({"guided_json": {"type": "integer", "multipleOf": 1_000_003}}, "guided_json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}}, "response_format"),
    ],
)
def test_forms_that_cannot_be_held_are_refused(world: World, extra: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        world.client.chat.completions.create(model="tiny", messages=ASK, extra_body=extra)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("said", "content", "num_calls"),
    [
        ('{"name": "weather", "parameters": {}}', '{"name": "weather", "parameters": {}}', 0),
        ('<tool_call>{"name": "time", "arguments": {}}</tool_call>', None, 1),
    ],
)
def test_a_form_beside_tools_that_may_be_called(world: World, said: str, content: str | None, num_calls: int) -> None:
    """Whatever the answer looks like, only what stands between our marks is a call."""
    world.backend.say = lambda request: said
    answer = world.client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, response_format={"type": "json_object"})
    assert world.backend.requests[0].sampling.grammar
    assert answer.choices[0].message.content == content and len(answer.choices[0].message.tool_calls or ()) == num_calls
