"""GET /openapi.json: the API told to programs (OpenAPI 3.1), made from the classes that check its bodies."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from colossus.serve.api import answers
from colossus.serve.api.chat_body import ChatBody
from colossus.serve.api.completions import CompletionBody
from colossus.serve.api.embeddings import EmbeddingBody
from colossus.serve.api.responses_body import ResponsesBody
from colossus.serve.api.tokenize import DetokenizeBody, TokenizeBody


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """One path's method: what it takes and gives."""

    path: str
    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel]
    streams: bool = False


_OPERATIONS = (
    _Operation(path="/v1/chat/completions", summary="Answer a conversation", body=ChatBody, answer=answers.ChatCompletion, streams=True),
    _Operation(path="/v1/completions", summary="Go on with a text", body=CompletionBody, answer=answers.TextCompletion, streams=True),
    _Operation(path="/v1/responses", summary="Answer a conversation, in the newer shape", body=ResponsesBody, answer=answers.ResponseObject, streams=True),
    _Operation(path="/v1/embeddings", summary="Texts to vectors", body=EmbeddingBody, answer=answers.Embeddings),
    _Operation(path="/tokenize", summary="Texts to tokens", body=TokenizeBody, answer=answers.Tokens),
    _Operation(path="/detokenize", summary="Tokens to text", body=DetokenizeBody, answer=answers.DetokenizedText),
    _Operation(path="/v1/models", summary="The model that is served", answer=answers.ModelList),
    _Operation(path="/v1/models/{name}", summary="One model", answer=answers.ServedModelData),
)
_FAILURES = {
    "400": "The body breaks a rule: the message says which, param where",
    "401": "An API key is needed, or this one is not known",
    "404": "No such model",
    "413": "The body is too large",
    "429": "Too many requests: come back after Retry-After seconds",
    "500": "A fault of the server",
    "503": "No engine is ready: come back after Retry-After seconds",
    "504": "The answer took longer than the server allows",
}


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    models = {model for operation in _OPERATIONS for model in (operation.body, operation.answer) if model is not None} | {answers.Error}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {}
    for operation in _OPERATIONS:
        paths[operation.path] = {"get" if operation.body is None else "post": _operation(operation)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Colossus", "version": version("colossus"), "description": "OpenAI-compatible API of a served model."},
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _operation(operation: _Operation) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _ref(operation.answer)}}
    if operation.streams:
        content["text/event-stream"] = {}
    failed = {"application/json": {"schema": _ref(answers.Error)}}
    responses: dict[str, Any] = {"200": {"description": operation.summary, "content": content}}
    responses |= {status: {"description": words, "content": failed} for status, words in _FAILURES.items()}
    data: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.body is not None:
        data["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(operation.body)}}}
    if "{name}" in operation.path:
        data["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return data


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
