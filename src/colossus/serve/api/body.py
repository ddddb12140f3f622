"""Bodies read and checked: whatever bytes come, the answer is a body that follows its rules, or a 400 with the path and the rule."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from colossus.serve.api.errors import ApiError, from_validation

Model = TypeVar("Model", bound=BaseModel)
_HALF = re.compile(rb"\\u[dD][89aAbB][0-9a-fA-F]{2}(?!\\u)")


async def read_body(request: Request, model: type[Model], *, max_bytes: int) -> Model:
    """The request's JSON as ``model``."""
    return check(parse(await _bytes(request, max_bytes)), model)


async def _bytes(request: Request, max_bytes: int) -> bytes:
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise ApiError(f"the body is larger than the {max_bytes} bytes that this server takes", status=413, code="body_too_large")
            parts.append(part)
    except ClientDisconnect:
        raise ApiError("the client left before its body was complete", status=400) from None
    return b"".join(parts)


def parse(raw: bytes) -> Any:
    """Strict JSON: no NaN, no half surrogate pairs, UTF-8 only, at most 200 levels deep."""
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(_fault(raw, str(error)), code="invalid_json") from None


def _fault(raw: bytes, words: str) -> str:
    """Names the two faults that JSON libraries write themselves; of all others, the parser's words."""
    if "surrogate" in words or ("hex escape" in words and _HALF.search(raw)):
        return f"the body has half a surrogate pair, which is no character: {words}"
    try:
        from_json(raw, allow_inf_nan=True)
    except ValueError:
        return f"the body is no JSON: {words}"
    return f"the body has a number that JSON does not know, NaN or Infinity: {words}"


def check(data: Any, model: type[Model]) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise from_validation(error) from None
