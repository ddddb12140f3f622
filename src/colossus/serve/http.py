"""uvicorn with a bound on everything a client can hold: connections, the time for a head, and what it leaves unread."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import resource
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from colossus.serve.settings import DoorSettings
from colossus.spec.errors import EngineError

_CLOSE_S = 5.0
_WRITE_BUFFER_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 16
_MOST_FRAMING = 8  # bytes around one byte of a body: a chunk of it is framed by 5, and more are no body but trailers without end
_OTHER_FILES = 128
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # of an address that is not this machine's


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, limits: DoorSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._num_head_bytes = self._num_rest_bytes = self._num_body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.write(_FULL)
            transport.close()
            return
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._head_timer is not None:
            self._num_head_bytes += len(data)
        self._num_rest_bytes += len(data)
        super().data_received(data)
        if self._head_timer is not None:
            too_much = self._num_head_bytes > _MAX_HEAD_BYTES
        else:
            too_much = self._num_rest_bytes - _MOST_FRAMING * self._num_body_bytes > _MAX_HEAD_BYTES
        if too_much:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._drop_head_timer()
        self._num_rest_bytes = self._num_body_bytes = 0
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write: it must take something within the time."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._limits.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._drop_stall_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_head_timer()
        self._drop_stall_timer()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._num_head_bytes = 0
        self._head_timer = self.loop.call_later(self._limits.header_timeout_s, self.transport.abort)

    def _drop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _drop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


_FULL_BODY = b'{"error":{"message":"too many connections are open","type":"service_unavailable","param":null,"code":"too_many_connections"}}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: "
    + str(len(_FULL_BODY)).encode()
    + b"\r\n\r\n"
    + _FULL_BODY
)


class HttpServer(uvicorn.Server):
    """Leaves signals to the door."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: ASGIApp, settings: DoorSettings) -> HttpServer:
    """For ``serve(sockets=[...])``; set ``should_exit`` to end it."""
    config = uvicorn.Config(
        app,
        http=functools.partial(Protocol, limits=settings),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        log_level="critical",  # the gate tells of faults
        proxy_headers=False,
        access_log=False,
        server_header=False,
        backlog=max(2048, settings.max_connections),
        timeout_keep_alive=int(settings.keep_alive_s),
        timeout_graceful_shutdown=int(_CLOSE_S),
    )
    return HttpServer(config)


def raise_open_files(settings: DoorSettings) -> str | None:
    """As many open files as the connections need, where the system lets us; else a sentence about how many there will be."""
    wanted = settings.max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return None
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return None if most == wanted else f"the system allows {most} open files, too few for {settings.max_connections} connections (ulimit -n)"


def listen(settings: DoorSettings) -> socket.socket:
    """A listening socket, on a free port where none is named. Raises EngineError in words."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port or 0))
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        of_host = isinstance(error, (socket.gaierror, UnicodeError)) or (isinstance(error, OSError) and error.errno in _NOT_OURS)
        hint = "for --host a name or address of this machine: 127.0.0.1, or 0.0.0.0 for all" if of_host else "another --port, or none for a free one"
        raise EngineError(f"cannot listen on {settings.host}:{settings.port or 0}: {words}", hint=hint) from error
    listener.setblocking(False)
    return listener
