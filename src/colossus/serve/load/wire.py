"""HTTP/1.1 as a load generator needs it: kept connections, and answers handed over piece by piece at little cost.

What the client spends on each piece of a stream, a server on the same cores lacks: with 32 streams 42 us here where aiohttp took 58 (two busy cores),
most of what is left in the kernel.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

import httptools

_STALE_S = 0.25  # a connection that its server has closed says so sooner
Take = Callable[[bytes], None]


class BrokenLine(Exception):
    """The connection could not be made, or ended before the answer did."""


class _Line(asyncio.Protocol):
    """One connection, for one request at a time. ``take`` gets the pieces of an answer with status 200; others are kept in ``refusal``."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_open = False
        self._parser: httptools.HttpResponseParser | None = None
        self._take: Take = lambda piece: None
        self._over: asyncio.Future[int] | None = None
        self.refusal = b""
        self.num_received = 0
        self._is_framed = False  # has a length or is chunked; else it ends with the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.is_open = cast("asyncio.Transport", transport), True  # uvloop's is none by class

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if error is None and self._parser is not None and self.num_received and not self._is_framed:
            self.on_message_complete()
        self._break(str(error) if error else "the server closed the connection")

    def data_received(self, data: bytes) -> None:
        self.num_received += len(data)
        if self._parser is None:  # nobody asked for this
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close()
            self._break(f"no HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._is_framed = self._is_framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_body(self, piece: bytes) -> None:
        assert self._parser is not None
        if self._parser.get_status_code() == 200:
            self._take(piece)
        else:
            self.refusal += piece

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if not self._parser.should_keep_alive():
            self.close()
        if self._over is not None and not self._over.done():
            self._over.set_result(self._parser.get_status_code())

    async def ask(self, data: bytes, take: Take) -> int:
        """Sends a whole request; returns the status once the answer has ended."""
        assert self.transport is not None
        self._parser, self._take, self._over = httptools.HttpResponseParser(self), take, asyncio.get_running_loop().create_future()
        self.refusal, self.num_received, self._is_framed = b"", 0, False
        self.transport.write(data)
        try:
            return await self._over
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._parser = self._over = None

    def close(self) -> None:
        self.is_open = False
        if self.transport is not None:
            self.transport.abort()

    def _break(self, words: str) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_exception(BrokenLine(words))


class Lines:
    """Connections to one server: as many as there are requests at once, kept for the next ones."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": parts.netloc, "Content-Type": "application/json", **headers}.items())
        self._idle: list[_Line] = []

    async def post(self, path: str, body: bytes, take: Take) -> tuple[int, str]:
        """Status, and the answer's text where the status is not 200; pieces of an answer with 200 go to ``take``. Raises BrokenLine.

        Some servers close a kept connection without a word; a request that meets that at once is sent again, as every HTTP client does.
        """
        data = f"POST {self._prefix}{path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        while True:
            line, was_kept = await self._line()
            begin_s = time.perf_counter()
            try:
                status = await line.ask(data, take)
            except BrokenLine:
                if was_kept and not line.num_received and time.perf_counter() - begin_s < _STALE_S:
                    continue
                raise
            if line.is_open:
                self._idle.append(line)
            return status, line.refusal.decode(errors="replace")

    async def _line(self) -> tuple[_Line, bool]:
        while self._idle:
            if (line := self._idle.pop()).is_open:
                return line, True
        try:
            _, line = await asyncio.get_running_loop().create_connection(_Line, self._host, self._port, ssl=self._tls)
        except OSError as error:
            raise BrokenLine(str(error)) from None
        return line, False

    def close(self) -> None:
        for line in self._idle:
            line.close()


@asynccontextmanager
async def lines(url: str, headers: dict[str, str]) -> AsyncIterator[Lines]:
    """Connections that end with the block."""
    opened = Lines(url, headers)
    try:
        yield opened
    finally:
        opened.close()
