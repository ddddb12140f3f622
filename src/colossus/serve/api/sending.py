"""Answers on their way out: whole, or as server-sent events; in both cases the work ends at once when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from colossus.serve.api.errors import ApiError, from_backend, to_json
from colossus.serve.backend import BackendError

DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(data) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """What ends a stream that had already begun."""
    return event(error.to_data())


class WholeAnswer(Response):
    """Sends what ``make`` gives as JSON; stops it when the client leaves first."""

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self.background = None
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            body = await self._make()
            await Response(body, media_type="application/json")(scope, receive, send)

        await _while_connected(receive, work())


class EventStream(Response):
    """Sends events as they come. A failure before the first one is an ordinary error answer, later one is an event of its own."""

    def __init__(self, events: AsyncGenerator[bytes, None], *, on_error: Callable[[ApiError], bytes] | None = None) -> None:
        self.background = None
        self._events = events
        self._on_error = on_error or (lambda error: error_event(error) + DONE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": _EVENT_HEADERS})
            await _send_part(send, first)
            try:
                async for data in events:
                    await _send_part(send, data)
            except (ApiError, BackendError) as error:
                await _send_part(send, self._on_error(error if isinstance(error, ApiError) else from_backend(error)))
            except Exception:
                await _send_part(send, self._on_error(ApiError("the server failed at this request; its log says more", status=500)))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_EVENT_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Does the work; when the client leaves before it is done, cancels it and waits until it has cleaned up."""
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (worker, watcher):
            if not task.done():
                task.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)
    if not worker.cancelled() and (error := worker.exception()) is not None:
        raise error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
