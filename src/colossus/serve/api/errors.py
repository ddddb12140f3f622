"""What goes wrong, in OpenAI's shape: {"error": {"message", "type", "param", "code"}} with the status that its clients know."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from colossus.serve.backend import BackendError, Overloaded
from colossus.spec.errors import ColossusError

MARK = "~"
"""Begins the names of a union's branches, which are no part of a path in the body."""


class ApiError(ColossusError):
    """An answer with a status of 400 or more, in OpenAI's shape.

    :param param: the path in the body that is at fault.
    :param code: a word for programs.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's ``type``."""
        return _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def to_data(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def to_response(self) -> Response:
        return Response(to_json(self.to_data()), self.status, self.headers, media_type="application/json")


_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error", 503: "service_unavailable"}


_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(data: Any) -> bytes:
    """Compact JSON in UTF-8; what UTF-8 cannot write (half a surrogate pair) stays escaped."""
    try:
        return _COMPACT.encode(data).encode()
    except UnicodeEncodeError:
        return json.dumps(data, separators=(",", ":")).encode()


def from_validation(error: ValidationError) -> ApiError:
    """The first broken rule of a body, with its path and the value that broke it; the number of others."""
    problems = error.errors(include_url=False)
    first = min(problems, key=lambda problem: problem["type"] == "missing")
    path = _path(first["loc"])
    message = _words(first)
    given = "" if first["type"] in {"missing", "value_error"} else f", not {_shown(first['input'])}"
    num_others = len(problems) - 1
    others = f" (and {num_others} more problem{'s' if num_others > 1 else ''})" if num_others else ""
    return ApiError(f"{path or 'body'}: {message}{given}{others}", param=path or None, code=_CODES.get(first["type"], "invalid_value"))


def _words(problem: Mapping[str, Any]) -> str:
    """pydantic's rule in the words of this API."""
    match problem["type"]:
        case "model_type":
            return "must be an object"
        case "too_short":
            return f"must have at least {_entries(problem['ctx']['min_length'])}"
        case "too_long":
            return f"must have at most {_entries(problem['ctx']['max_length'])}"
        case "value_error":
            return str(problem["ctx"]["error"])
    message = problem["msg"].replace("Input should", "must", 1).replace("String should", "must", 1)
    return message[:1].lower() + message[1:]


def _entries(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"


_CODES = {"missing": "missing_required_parameter"}


def _path(place: tuple[int | str, ...]) -> str:
    """``messages[0].content`` from its parts, less the names of branches."""
    path = ""
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]" and not part.startswith(MARK):
            path += f".{part}" if path else part
    return path


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def from_backend(error: BackendError) -> ApiError:
    """Too many requests (429, with the time to come back) or no engine (503)."""
    if isinstance(error, Overloaded):
        return ApiError(str(error), status=429, code="server_overloaded", headers={"Retry-After": str(max(1, math.ceil(error.retry_after_s)))})
    return ApiError(str(error), status=503, code="server_unavailable", headers={"Retry-After": "1"})


def no_such_model(asked: str, served: str) -> ApiError:
    """The model asked for is not the one here."""
    return ApiError(f"the model {_shown(asked)} does not exist here; this server has {served!r}", status=404, param="model", code="model_not_found")


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own (no such path, wrong method) in the same shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        words = f"there is nothing at {request.method} {request.url.path}; see /openapi.json"
    elif error.status_code == 405:
        words = f"{request.url.path} does not take {request.method}"
    else:
        words = error.detail
    return ApiError(words, status=error.status_code, headers=error.headers).to_response()


async def on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.to_response()


async def on_backend_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BackendError)
    return from_backend(error).to_response()


async def on_crash(request: Request, error: Exception) -> Response:
    """A fault of ours: no inner words go out (Starlette raises it again for the log)."""
    return ApiError("the server failed at this request; its log says more", status=500).to_response()


HANDLERS: dict[Any, Any] = {
    HTTPException: on_http_error,
    ApiError: on_api_error,
    BackendError: on_backend_error,
    Exception: on_crash,
}
"""For Starlette(exception_handlers=...)."""
