"""Whatever comes, the answer is a 4xx in OpenAI's shape, with the place and the rule."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from colossus.serve.api.settings import ApiSettings
from colossus.serve.backend import Overloaded, Unavailable
from colossus.serve.request import Finish, Output, Request
from tests.serve.api.conftest import World
from tests.serve.api.doubles import Scripted, TinyModel, app, send, serving

ASK = [{"role": "user", "content": "hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def told(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status == status, reply.raw
    error: dict[str, Any] = reply.data["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, [], None),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": ["x"]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "bob", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0].type"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}]}, "messages"),
        (CHAT, {"messages": ASK, "temperature": 3}, "temperature"),
        (CHAT, {"messages": ASK, "temperature": "1"}, "temperature"),
        (CHAT, {"messages": ASK, "temperature": True}, "temperature"),
        (CHAT, {"messages": ASK, "top_p": -0.1}, "top_p"),
        (CHAT, {"messages": ASK, "n": 0}, "n"),
        (CHAT, {"messages": ASK, "n": 129}, "n"),
        (CHAT, {"messages": ASK, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": ASK, "max_tokens": 1.5}, "max_tokens"),
        (CHAT, {"messages": ASK, "max_tokens": 10**30}, "max_tokens"),
        (CHAT, {"messages": ASK, "max_tokens": 2000}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 3000}]}, "messages"),
        (CHAT, {"messages": ASK, "min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        (CHAT, {"messages": ASK, "stop": [1]}, "stop[0]"),
        (CHAT, {"messages": ASK, "stop": ["x"] * 17}, "stop"),
        (CHAT, {"messages": ASK, "seed": 2**64}, "seed"),
        (CHAT, {"messages": ASK, "logit_bias": {"5": 101}}, "logit_bias.5"),
        (CHAT, {"messages": ASK, "logit_bias": {"999999": 1}}, "logit_bias"),
        (CHAT, {"messages": ASK, "stop_token_ids": [999999]}, "stop_token_ids"),
        (CHAT, {"messages": ASK, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"messages": ASK, "stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"messages": ASK, "functions": [{"name": "f"}]}, "functions"),
        (CHAT, {"messages": ASK, "chat_template": "{{ 1 }}"}, "chat_template"),
        (CHAT, {"messages": ASK, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        (CHAT, {"messages": ASK, "tool_choice": "required"}, "tool_choice"),
        (CHAT, {"messages": ASK, "continue_final_message": True}, "continue_final_message"),
        (TEXT, {"prompt": None}, "prompt"),
        (TEXT, {"prompt": ""}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": [[]]}, "prompt[0]"),
        (TEXT, {"prompt": [-1]}, "prompt[0]"),
        (TEXT, {"prompt": [True]}, "prompt[0]"),
        (TEXT, {"prompt": [1, "x"]}, "prompt[1]"),
        (TEXT, {"prompt": [999999]}, "prompt"),
        (TEXT, {"prompt": "x", "suffix": "y"}, "suffix"),
        (TEXT, {"prompt": "x", "best_of": 2}, "best_of"),
        (TEXT, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        (TEXT, {"prompt": "x", "logprobs": 21}, "logprobs"),
        (TEXT, {"prompt": ["x"] * 100, "n": 2}, "n"),
        (TEXT, {"prompt": ["x"] * 1_000_000}, "n"),
        (TEXT, {"prompt": [[1]] * 500_000}, "n"),
        ("/v1/embeddings", {"input": ["x"] * 1_000_000}, "input"),
        ("/v1/embeddings", {"input": "x", "dimensions": 5}, "dimensions"),
        ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/responses", {"input": [{"type": "function_call", "name": "f"}]}, "input[0]"),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ("/v1/responses", {"input": [{"type": "reasoning"}]}, "input"),
        ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "", "output": "x"}]}, "input[0].call_id"),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", "name": "n" * 65, "schema": {}}}}, "text.format.name"),
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": [10**7]}, "tokens"),
    ],
)
def test_broken_rules(world: World, path: str, body: Any, param: str | None) -> None:
    error = told(send(world.url + path, body), 400)
    assert error["type"] == "invalid_request_error" and error["param"] == param
    assert not world.backend.requests


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": [{"role": "user", "content": "x"}]} and more',
    ],
)
def test_what_is_no_json(world: World, raw: bytes) -> None:
    assert told(send(world.url + CHAT, raw), 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"messages": [], "temperature": NaN}', "NaN or Infinity"),
        (b'{"messages": [], "temperature": -Infinity}', "NaN or Infinity"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half a surrogate pair"),
        (b'{"messages": [{"role": "user", "content": "\\udc00 x"}]}', "half a surrogate pair"),
        (b'{"messages": [{"role": "user", "content": "\\u12"}]}', "no JSON"),
        (b'{"temperature": NaN', "no JSON"),
        (b'{"messages": []}', "must have at least 1 entry"),
        (b'{"messages": [{"role": "bob", "content": "x"}], "n": 0}', "(and 1 more problem)"),
    ],
)
def test_the_fault_is_named(world: World, raw: bytes, words: str) -> None:
    assert words in told(send(world.url + CHAT, raw), 400)["message"]


def test_numbers_that_schemas_cannot_hold(world: World) -> None:
    raw = b'{"messages": [{"role": "user", "content": "x"}], "guided_json": {"type": "number", "maximum": 1e999}}'
    assert told(send(world.url + CHAT, raw), 400)["param"] == "guided_json"


def test_unknown_fields_are_let_be(world: World) -> None:
    assert send(world.url + CHAT, {"messages": ASK, "service_tier": "auto", "store": True, "metadata": {"a": "b"}, "whatever": [1]}).status == 200


def test_a_template_may_be_given_any_name(world: World) -> None:
    assert send(world.url + CHAT, {"messages": ASK, "chat_template_kwargs": {"self": 1, "text": 2, "variables": 3}}).status == 200


def test_a_null_is_as_nothing(world: World) -> None:
    fields = ["temperature", "top_p", "n", "stop", "tools", "tool_choice", "response_format", "logit_bias", "stream", "max_tokens", "best_of", "functions"]
    assert send(world.url + CHAT, {"messages": ASK} | dict.fromkeys(fields)).status == 200


def test_paths_and_methods(world: World) -> None:
    assert told(send(world.url + "/v1/nothing", {}), 404)["type"] == "not_found_error"
    reply = send(world.url + CHAT, method="GET")
    told(reply, 405)
    assert "POST" in {name.lower(): value for name, value in reply.headers.items()}["allow"]


def test_large_bodies() -> None:
    model = TinyModel()
    with serving(app(Scripted(model.tokenizer), model, ApiSettings(max_body_bytes=1000))) as url:
        assert told(send(url + CHAT, {"messages": [{"role": "user", "content": "x" * 2000}]}), 413)["code"] == "body_too_large"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_and_no_engine(world: World, stream: bool) -> None:
    world.backend.say = lambda request: Overloaded("the queue is full", retry_after_s=2.4)
    reply = send(world.url + CHAT, {"messages": ASK, "stream": stream})
    assert told(reply, 429)["type"] == "rate_limit_error" and reply.headers["retry-after"] == "3"
    world.backend.say = lambda request: Unavailable("no engine is ready")
    told(send(world.url + CHAT, {"messages": ASK, "stream": stream}), 503)
    with pytest.raises(openai.InternalServerError):
        world.client.chat.completions.create(model="tiny", messages=ASK, stream=stream, n=2)


def failing(after: int, finish: Finish = Finish.ERROR) -> Any:
    """Outputs that end in a failure after some tokens."""

    def outputs(request: Request, tokens: list[int]) -> Any:
        for token in tokens[:after]:
            yield Output(id=request.id, tokens=(token,))
        yield Output(id=request.id, finish=finish, error="the engine died")

    return outputs


@pytest.mark.parametrize(("finish", "status"), [(Finish.ERROR, 500), (Finish.ABORT, 504)])
def test_an_engine_that_fails(world: World, monkeypatch: pytest.MonkeyPatch, finish: Finish, status: int) -> None:
    monkeypatch.setattr(world.backend, "_outputs", failing(0, finish), raising=False)
    assert told(send(world.url + CHAT, {"messages": ASK, "stream": True}), status)["message"] == "the engine died"
    monkeypatch.setattr(world.backend, "_outputs", failing(1, finish), raising=False)
    told(send(world.url + CHAT, {"messages": ASK}), status)
    told(send(world.url + "/v1/embeddings", {"input": "x"}), status)


def test_a_failure_inside_a_stream_is_an_event(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.backend, "_outputs", failing(1), raising=False)
    reply = send(world.url + CHAT, {"messages": ASK, "stream": True})
    assert reply.status == 200 and reply.raw.endswith(b"data: [DONE]\n\n") and b'data: {"error":{"message":"the engine died"' in reply.raw
    with pytest.raises(openai.APIError, match="the engine died"):
        list(world.client.completions.create(model="tiny", prompt="x", stream=True))
    events = list(world.client.responses.create(model="tiny", input="x", stream=True))
    assert events[-1].type == "response.failed" and events[-1].response.error.message == "the engine died"


def test_a_fault_of_ours_tells_nothing_inner(world: World) -> None:
    world.backend.say = lambda request: RuntimeError("secret")
    error = told(send(world.url + CHAT, {"messages": ASK}), 500)
    assert error["type"] == "server_error" and "secret" not in error["message"]


def test_millions_of_characters_are_not_even_tokenized(world: World) -> None:
    long = "x" * 2_000_000
    assert told(send(world.url + CHAT, {"messages": [{"role": "user", "content": long}]}), 400)["code"] == "context_length_exceeded"
    assert told(send(world.url + TEXT, {"prompt": long}), 400)["param"] == "prompt"
