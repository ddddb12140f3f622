"""The OpenAPI document against the server that it tells of."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

from colossus.serve.api import answers
from tests.serve.api.conftest import World
from tests.serve.api.doubles import send

ASK = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        ("/v1/chat/completions", {"messages": ASK, "logprobs": True, "top_logprobs": 1, "n": 2}, answers.ChatCompletion),
        ("/v1/chat/completions", {"messages": ASK, "tools": [TOOL]}, answers.ChatCompletion),
        ("/v1/completions", {"prompt": "x", "logprobs": 1, "echo": True}, answers.TextCompletion),
        ("/v1/responses", {"input": "x"}, answers.ResponseObject),
        ("/v1/embeddings", {"input": "x"}, answers.Embeddings),
        ("/tokenize", {"prompt": "x"}, answers.Tokens),
        ("/detokenize", {"tokens": [70]}, answers.DetokenizedText),
        ("/v1/models", None, answers.ModelList),
        ("/v1/models/tiny", None, answers.ServedModelData),
        ("/v1/models/other", None, answers.Error),
        ("/v1/chat/completions", {}, answers.Error),
        ("/v2", None, answers.Error),
    ],
)
def test_answers_have_the_shapes_told(world: World, path: str, body: Any, shape: type[answers.Answer]) -> None:
    world.backend.say = lambda request: '<tool_call>{"name":"f","arguments":{}}</tool_call>'
    reply = send(world.url + path, body, method="GET" if body is None else "POST")
    shape.model_validate_json(reply.raw, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_schemathesis_finds_nothing(world: World, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{world.url}/openapi.json")
    # Valid by the document, and yet too long or for another model: the document cannot say so.
    left_out = [check for check in checks.CHECKS.get_all() if check.__name__ in {"positive_data_acceptance", "ignored_auth"}]
    for found in document.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # a path without a body has nothing to get wrong

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], derandomize=True, database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            case.call_and_validate(excluded_checks=left_out)

        check()
