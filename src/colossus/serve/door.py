"""The door: HTTP before, engines behind. Opens at once, is ready when an engine is, and drains when it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

import colossus
from colossus.serve.api.errors import HANDLERS
from colossus.serve.gate import Gate, Gatekeeping
from colossus.serve.http import HttpServer, http_server, listen, raise_open_files
from colossus.serve.keys import Keys
from colossus.serve.limits import Limits
from colossus.serve.logs import RequestLog
from colossus.serve.measures import Measures
from colossus.serve.metrics import CONTENT_TYPE, Metrics
from colossus.serve.replicas import Fleet, Launcher
from colossus.serve.router import Router
from colossus.serve.settings import DoorSettings, RouterSettings
from colossus.serve.summary import Summary
from colossus.serve.tracing import Tracing
from colossus.spec.errors import EngineError

_DRAINING = "this server is ending and takes no new requests"
_STOPPED = "the server was stopped before the answer was whole"
_TICK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Talk:
    """What the door tells whoever runs it. ``ready``: once, with the address; ``say``: news of engines; ``complain``: faults of ours."""

    ready: Callable[[str], None] = lambda address: None
    say: Callable[[str], None] = lambda text: None
    complain: Callable[[str], None] = lambda text: None


class Door:
    """One server. Make the API's routes over ``router``, then ``run`` it."""

    def __init__(
        self,
        name: str,
        launcher: Launcher,
        *,
        settings: DoorSettings,
        routing: RouterSettings,
        talk: Talk,
    ) -> None:
        self._name = name
        self._settings = settings
        self._talk = talk
        self.measures = Measures()
        self.fleet = Fleet(launcher, routing, say=talk.say)
        self.router = Router(self.fleet, routing, self.measures)
        self._summary = Summary(name, self.fleet, self.router, self.measures)
        self._metrics = Metrics(name, self.fleet, self.router, self.measures)
        self.address: str | None = None  # once it listens
        self.connections: set[Any] = set()
        self._num_signals = 0
        self._signalled = asyncio.Event()
        self._forced = asyncio.Event()

    async def run(self, api: list[BaseRoute], page: list[BaseRoute], listener: socket.socket | None = None) -> int:
        """Serves until a signal; returns the exit code. Raises EngineError when no engine can be started.

        :param listener: from ``http.listen``; else one is made.
        """
        keys = Keys(self._settings.api_keys) if self._settings.api_keys is not None else None
        tracing = Tracing(self._settings.otlp_endpoint, self._name) if self._settings.otlp_endpoint is not None else None
        listener = listener or listen(self._settings)
        if (words := raise_open_files(self._settings)) is not None:
            self._talk.say(words)
        log = RequestLog(self._settings.request_log) if self._settings.request_log is not None else None
        keeping = Gatekeeping(
            settings=self._settings,
            limits=Limits(self._settings.quota),
            keys=keys,
            log=log,
            tracing=tracing,
            page_paths=frozenset(route.path for route in page if isinstance(route, Route)),
            draining=lambda: _DRAINING if self._num_signals else None,
            complain=self._talk.complain,
        )
        server = http_server(self._app(api, page, keeping), self._settings)
        self.connections = server.server_state.connections
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        with self._signals():
            try:
                await self.fleet.start(self.router)
                self.address = _address(self._settings, listener.getsockname()[1])
                return await self._live(self.address)
            finally:
                await self._end(server, serving)
                for closing in (log, tracing):
                    if closing is not None:
                        closing.close()

    async def _end(self, server: HttpServer, serving: asyncio.Task[None]) -> None:
        """Leaves no request, process, connection or file behind."""
        self.router.close(_DRAINING)
        self.router.end_all(_STOPPED)
        await self.fleet.stop(self._forced.is_set)
        server.should_exit = True
        with contextlib.suppress(Exception):
            await serving

    async def _live(self, address: str) -> int:
        ticking = asyncio.create_task(self._tick())
        ended = asyncio.create_task(self._signalled.wait())
        try:
            told = False
            while not self._signalled.is_set():
                if self.fleet.failure is not None:
                    words, _, hint = self.fleet.failure.partition("\nhint: ")
                    raise EngineError(f"no engine could be started: {words}", hint=hint or None)
                if self.fleet.ready and not told:
                    told = True
                    gc.collect()
                    gc.freeze()
                    self._talk.ready(address)
                self.fleet.changed.clear()
                changed = asyncio.create_task(self.fleet.changed.wait())
                await asyncio.wait({changed, ended}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            return await self._drain()
        finally:
            ticking.cancel()
            ended.cancel()

    async def _drain(self) -> int:
        """Running requests go on; 0 when they ended or their time is over, 130 when a second signal cut them off."""
        self.router.close(_DRAINING)
        idle = asyncio.create_task(self.router.wait_idle())
        forced = asyncio.create_task(self._forced.wait())
        self._talk.say(f"draining: {self._under_way()} for at most {self._settings.drain_s:g} s; a second signal ends at once")
        await asyncio.wait({idle, forced}, timeout=self._settings.drain_s, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        forced.cancel()
        return 130 if self._forced.is_set() else 0

    def _under_way(self) -> str:
        num_calls = self.router.num_calls
        return "1 request goes on" if num_calls == 1 else f"{num_calls} requests go on"

    async def _tick(self) -> None:
        while True:
            self._summary.tick()
            await asyncio.sleep(_TICK_S)

    @contextlib.contextmanager
    def _signals(self) -> Any:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        try:
            for number in numbers:
                loop.add_signal_handler(number, self.stop)
        except (ValueError, RuntimeError, NotImplementedError):  # not in the main thread: who started us stops us
            yield
            return
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """As a signal does: drains at the first call, ends at once at the second."""
        self._num_signals += 1
        self._signalled.set()
        if self._num_signals > 1:
            self._forced.set()

    # Routes of our own

    def _app(self, api: list[BaseRoute], page: list[BaseRoute], keeping: Gatekeeping) -> Gate:
        own = [
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/version", self._version),
            Route("/metrics", self._metrics_text),
            Route("/stats", self._stats),
        ]
        cors = [Middleware(CORSMiddleware, allow_origins=self._settings.cors_origins, allow_methods=["*"], allow_headers=["*"])]
        app = Starlette(routes=[*own, *page, *api], exception_handlers=HANDLERS, middleware=cors if self._settings.cors_origins else [])
        return Gate(app, keeping)

    async def _health(self, request: Request) -> Response:
        """The process lives and its loop turns."""
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        """A request would be taken."""
        if self.router.is_ready:
            return JSONResponse({"status": "ready"})
        if self._num_signals:
            return JSONResponse({"status": "draining"}, 503, {"Connection": "close"})
        doing = [f"engine {replica.index}: {replica.state.value}" + (f", {replica.text}" if replica.text else "") for replica in self.fleet.replicas]
        return JSONResponse({"status": "starting", "engines": doing}, 503)

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": colossus.__version__})

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=None, headers={"content-type": CONTENT_TYPE})

    async def _stats(self, request: Request) -> Response:
        return JSONResponse(self._summary.data())


def _address(settings: DoorSettings, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    return f"http://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"http://{host}:{port}"
