"""Bodies that are nearly right, and bytes that are nearly bodies: never a 500, and nothing is left running."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings
from starlette.applications import Starlette

from tests.serve.api.doubles import Scripted, TinyModel, app

MODEL = TinyModel()
BACKEND = Scripted(MODEL.tokenizer)
APP = app(BACKEND, MODEL)
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "7"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "stop": ["a", "b"],
        "logit_bias": {"5": 1.0},
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "seed": 5,
    },
    "/v1/completions": {"prompt": [[70, 71], [72]], "echo": True, "logprobs": 1, "max_tokens": 3, "stop": "x", "stream": False, "guided_regex": "a+"},
    "/v1/responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}, {"type": "function_call_output", "call_id": "1", "output": "y"}],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
        "stream": True,
    },
    "/v1/embeddings": {"input": ["a", "b"], "encoding_format": "base64"},
    "/tokenize": {"messages": [{"role": "user", "content": "x"}], "return_token_strs": True},
    "/detokenize": {"tokens": [70, 71]},
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5) | st.sampled_from(["user", "text", "auto", "function", "$ref"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.sampled_from(["type", "role", "content"]), inner, max_size=3),
    max_leaves=6,
)


async def post(application: Starlette, path: str, raw: bytes) -> int:
    """The status that a body gets, without a network between."""
    messages = [{"type": "http.request", "body": raw, "more_body": False}]
    statuses: list[int] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        elif statuses[0] == 200:
            assert b'"type":"server_error"' not in message["body"]

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "http_version": "1.1", "server": ("x", 1)}
    await asyncio.wait_for(application(scope, receive, send), 20)
    return statuses[0]


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def with_value(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    data = copy.copy(data)
    data[path[0]] = with_value(data[path[0]], path[1:], value)
    return data


@settings(max_examples=250, deadline=None)
@given(data=st.data(), path=st.sampled_from(sorted(BODIES)))
def test_a_body_with_something_else_in_it(data: st.DataObject, path: str) -> None:
    body = BODIES[path]
    for _ in range(data.draw(st.integers(1, 3))):
        body = with_value(body, data.draw(st.sampled_from(places(body))), data.draw(anything))
    status = asyncio.run(post(APP, path, json.dumps(body).encode()))
    assert status in {200, 400, 404} and not BACKEND.running


@settings(max_examples=150, deadline=None)
@given(data=st.data(), path=st.sampled_from(sorted(BODIES)))
def test_bytes_with_something_else_in_them(data: st.DataObject, path: str) -> None:
    raw = bytearray(json.dumps(BODIES[path]).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=3))
    assert asyncio.run(post(APP, path, bytes(raw))) in {200, 400, 404} and not BACKEND.running
