"""The paths of the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from colossus.serve.api.chat import ChatEndpoint
from colossus.serve.api.completions import CompletionsEndpoint
from colossus.serve.api.embeddings import EmbeddingsEndpoint
from colossus.serve.api.errors import no_such_model, to_json
from colossus.serve.api.openapi import document
from colossus.serve.api.responses import ResponsesEndpoint
from colossus.serve.api.service import Service
from colossus.serve.api.settings import ApiSettings
from colossus.serve.api.text import TextModel
from colossus.serve.api.tokenize import DetokenizeEndpoint, TokenizeEndpoint
from colossus.serve.backend import Backend


def routes(backend: Backend, model: TextModel, settings: ApiSettings | None = None) -> list[Route]:
    """Starlette routes of one model behind one backend. The app adds ``errors.HANDLERS`` as its exception handlers."""
    service = Service(backend, model, settings or ApiSettings())
    models = _Models(service)
    posts: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/v1/chat/completions": ChatEndpoint(service).handle,
        "/v1/completions": CompletionsEndpoint(service).handle,
        "/v1/embeddings": EmbeddingsEndpoint(service).handle,
        "/v1/responses": ResponsesEndpoint(service).handle,
        "/tokenize": TokenizeEndpoint(service).handle,
        "/detokenize": DetokenizeEndpoint(service).handle,
    }
    return [
        *(Route(path, handle, methods=["POST"]) for path, handle in posts.items()),
        Route("/v1/models", models.list_all, methods=["GET"]),
        Route("/v1/models/{name:path}", models.show, methods=["GET"]),
        Route("/openapi.json", _openapi, methods=["GET"]),
    ]


async def _openapi(request: Request) -> Response:
    return _json(document())


class _Models:
    """GET /v1/models and /v1/models/{name}: the one model that is served."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list_all(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._data()]})

    async def show(self, request: Request) -> Response:
        if request.path_params["name"] != self._service.model_name:
            raise no_such_model(request.path_params["name"], self._service.model_name)
        return _json(self._data())

    def _data(self) -> dict[str, object]:
        return {
            "id": self._service.model_name,
            "object": "model",
            "created": self._service.settings.created_s,
            "owned_by": "colossus",
            "root": self._service.model_name,
            "parent": None,
            "max_model_len": self._service.bounds.max_sequence_tokens,
        }


def _json(data: object) -> Response:
    return Response(to_json(data), media_type="application/json")
