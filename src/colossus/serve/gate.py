"""What every request passes on its way to the API, as plain ASGI: a name and a log line, origin, key, quota, the body's size and pace."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from colossus.serve.api.errors import ApiError
from colossus.serve.calls import Call, current_call
from colossus.serve.keys import Keys
from colossus.serve.limits import LimitError, Limits
from colossus.serve.logs import RequestLog
from colossus.serve.settings import DoorSettings
from colossus.serve.tracing import Tracing
from colossus.serve.turns import Turns

# Asked often, by machines, for nothing that needs a key: not logged, not limited, answered also while draining.
OPEN_PATHS = frozenset({"/health", "/ready", "/version"})
_WATCHED = frozenset({"/metrics", "/stats"})  # asked every few seconds: their lines would bury the others
_METERED = "/v1/"
_PAGE = "/page/"  # under it, what the page does not have is a 404, not a question for a key
_MOST_ROUTE_CHARACTERS = 256  # of a path, in logs and traces
_ID = re.compile(rb"[A-Za-z0-9_.:/-]{1,128}")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, kw_only=True)
class Gatekeeping:
    """What the gate consults. ``page_paths``: the page's own files, which hold no secret."""

    settings: DoorSettings
    limits: Limits
    keys: Keys | None
    log: RequestLog | None
    tracing: Tracing | None
    page_paths: frozenset[str]
    draining: Callable[[], str | None]
    complain: Callable[[str], None]


class Gate:
    """The outermost application. Whatever happens inside, a request gets an answer in OpenAI's shape and a line in the log."""

    def __init__(self, app: ASGIApp, keeping: Gatekeeping) -> None:
        self._app = app
        self._keeping = keeping
        self._num_held_bytes = 0  # of bodies, all requests together
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_s = time.monotonic()
        if scope["path"] not in OPEN_PATHS:
            await self._turns.take()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        call = Call(id=_request_id(scope), method=scope["method"], route=scope["path"][:_MOST_ROUTE_CHARACTERS], started_s=arrived_s)
        if scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, _Noting(call, send))
            return
        current_call.set(call)
        tracing = self._keeping.tracing
        span = tracing.begin(call, headers) if tracing is not None else None
        try:
            await self._pass(call, headers, scope, receive, _Noting(call, send))
        finally:
            if tracing is not None:
                tracing.end(call, span)
            if self._keeping.log is not None and not (call.route in _WATCHED and call.status == 200):
                self._keeping.log.write(call)

    async def _pass(self, call: Call, headers: Mapping[str, str], scope: Scope, receive: Receive, send: _Noting) -> None:
        try:
            await self._admit(call, headers, scope, receive, send)
        except ApiError as error:
            call.error = str(error)
            await self._refuse(error, scope, receive, send)
        except _Left:
            call.error = "the client left before its request was whole"
        except Exception as error:
            call.error = f"{type(error).__name__}: {error}"
            self._keeping.complain(f"request {call.id} failed here:\n{traceback.format_exc()}")
            await self._refuse(ApiError("the server failed at this request; its log says more", status=500), scope, receive, send)

    async def _admit(self, call: Call, headers: Mapping[str, str], scope: Scope, receive: Receive, send: _Noting) -> None:
        keeping = self._keeping
        if (words := keeping.draining()) is not None:
            raise ApiError(words, status=503, code="server_draining", headers={"Connection": "close", "Retry-After": "5"})
        _check_origin(headers, keeping.settings)
        call.owner = self._owner(headers, scope)
        scope.setdefault("state", {})["owner"] = call.owner
        scope["state"]["request_id"] = call.id
        if not scope["path"].startswith(_METERED) or scope["method"] != "POST":
            await self._within(scope, receive, send)
            return
        owner = keeping.limits.of(call.owner)
        try:
            owner.enter()
        except LimitError as error:
            raise ApiError(str(error), status=429, code="rate_limit_exceeded", headers=_retry_after(error.retry_after_s)) from error
        call.account = owner
        try:
            await self._within(scope, receive, send)
        finally:
            owner.leave()

    async def _within(self, scope: Scope, receive: Receive, send: _Noting) -> None:
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        held = _Held(self)
        try:
            body = await _whole_body(scope, receive, self._keeping.settings, held)
            await self._app(scope, _Replay(body, receive), send)
        finally:
            held.release()

    def hold(self, num_bytes: int) -> None:
        """More of a body came, or with a negative number it is gone. Raises ApiError where all bodies together are too large."""
        if num_bytes > 0 and self._num_held_bytes + num_bytes > self._keeping.settings.max_held_bytes:
            headers = _retry_after(1) | {"Connection": "close"}
            raise ApiError("the server holds as many requests as its memory allows", status=503, code="server_overloaded", headers=headers)
        self._num_held_bytes += num_bytes

    def _owner(self, headers: Mapping[str, str], scope: Scope) -> str:
        keys = self._keeping.keys
        path = scope["path"]
        if keys is None or path in self._keeping.page_paths or path.startswith(_PAGE) or scope["method"] == "OPTIONS":
            return ""
        kind, _, key = headers.get("authorization", "").partition(" ")
        owner = keys.owner(key.strip()) if kind.lower() == "bearer" else None
        if owner is None:
            words = "this server needs an API key: send the header 'Authorization: Bearer KEY'"
            if key:
                words = "this API key is not known here; its owner may have revoked it"
            raise ApiError(words, status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return owner

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: _Noting) -> None:
        """Nothing can be said in an answer that has begun: where it is not whole, the connection is cut, so that it is not taken for whole."""
        if send.is_complete:
            return
        if send.call.begun:
            raise error
        await error.to_response()(scope, receive, send)


class _Left(Exception):
    """The client went away before its request was whole."""


class _Noting:
    """``send`` that names the request to its client and notes the status."""

    def __init__(self, call: Call, send: Send) -> None:
        self.call = call
        self.is_complete = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.call.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.call.id.encode())]
            self.call.begun = True
        elif not message.get("more_body", False):
            self.is_complete = True
        await self._send(message)


class _Held:
    """What one request holds of the memory for bodies, from its first byte on."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Raises ApiError."""
        self._gate.hold(num_bytes)
        self.num_bytes += num_bytes

    def release(self) -> None:
        self._gate.hold(-self.num_bytes)


class _Replay:
    """``receive`` for a body that was read already; then the connection's own, which says when the client leaves."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _whole_body(scope: Scope, receive: Receive, settings: DoorSettings, held: _Held) -> bytes:
    """Raises ApiError for one too large or too slow. All our bodies are JSON, which is of no use in parts."""
    most = settings.max_body_bytes
    told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if told.isdigit() and int(told) > most:
        raise _too_large(most)
    parts = []
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Left
                part = message.get("body", b"")
                held.add(len(part))
                if held.num_bytes > most:
                    raise _too_large(most)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        words = f"the body was not whole after {settings.body_timeout_s:g} s"
        raise ApiError(words, status=408, code="request_timeout", headers={"Connection": "close"}) from error


def _too_large(most_bytes: int) -> ApiError:
    words = f"the body is larger than {most_bytes} bytes, the most this server takes (--max-body-mib)"
    return ApiError(words, status=413, code="body_too_large", headers={"Connection": "close"})


def _retry_after(duration_s: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(duration_s)))}


def _request_id(scope: Scope) -> str:
    """The caller's own, where it is harmless; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            text: str = value.decode()
            return text
    return f"req-{secrets.token_hex(12)}"


def _check_origin(headers: Mapping[str, str], settings: DoorSettings) -> None:
    """Foreign web pages may neither call us with their reader's reach nor, by a name that turns to loopback, pass for us."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is not None and origin not in settings.cors_origins and "*" not in settings.cors_origins and origin.partition("://")[2] != host:
        raise ApiError(f"pages of {origin[:200]} may not use this server; start it with --cors-origin to let them", status=403, code="origin_not_allowed")
    if settings.host in _LOOPBACK and settings.api_keys is None and not _is_loopback(host):
        raise ApiError(f"this server answers only to localhost and 127.0.0.1, not to {host[:200]!r}", status=421, code="host_not_allowed")


def _is_loopback(host: str) -> bool:
    try:
        return (urlsplit(f"//{host}").hostname or "") in (*_LOOPBACK, "")
    except ValueError:
        return False
