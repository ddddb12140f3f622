"""Doors over scripted engines, with a path that streams tokens; as a program, one that a test can send signals to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from colossus.serve.api.sending import EventStream, WholeAnswer, event
from colossus.serve.door import Door, Talk
from colossus.serve.request import Finish
from colossus.serve.router import Router
from colossus.serve.settings import DoorSettings, RouterSettings
from tests.serve.clusters import ask, launcher, until


@dataclass
class Served:
    door: Door
    url: str
    http: aiohttp.ClientSession
    talk: list[str]

    async def say(self, *prompt: int, max_tokens: int = 5, stream: bool = False, **options: Any) -> aiohttp.ClientResponse:
        body = {"prompt": list(prompt) or [1, 2, 3], "max_tokens": max_tokens, "stream": stream}
        return await self.http.post(f"{self.url}/v1/say", json=body, **options)


@contextlib.asynccontextmanager
async def serving(
    folder: Path, settings: DoorSettings | None = None, routing: RouterSettings | None = None, *, wait: bool = True, **options: Any
) -> AsyncIterator[Served]:
    routing, talk, address = routing or RouterSettings(), [], []
    listening = Talk(ready=address.append, say=talk.append, complain=talk.append)
    door = Door("tiny", launcher(folder, routing.num_replicas, **options), settings=settings or DoorSettings(drain_s=0.2), routing=routing, talk=listening)
    running = asyncio.create_task(door.run(routes(door.router), page()))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        try:
            await until(lambda: running.done() or (door.address and (address or not wait)))
            if running.done():
                running.result()
            yield Served(door, door.address, http, talk)
        finally:
            if not running.done():
                door.stop()
                assert await asyncio.wait_for(running, 30) == 0
    assert door.router.num_requests == 0 and door.router.num_outstanding_tokens == 0


def page() -> list[Route]:
    async def index(request: HttpRequest) -> Response:
        return PlainTextResponse("the page")

    return [Route("/", index)]


def routes(router: Router) -> list[Route]:
    async def say(request: HttpRequest) -> Response:
        body = json.loads(await request.body())
        asked = ask(tuple(body["prompt"]), max_tokens=body["max_tokens"])
        if body.get("stream"):
            return EventStream(_events(router, asked, body.get("pad", 0)))

        async def whole() -> bytes:
            outputs = [output async for output in router.submit(asked)]
            error = outputs[-1].error if outputs[-1].finish is Finish.ERROR else None
            return json.dumps({"tokens": [token for output in outputs for token in output.tokens], "error": error}).encode()

        return WholeAnswer(whole)

    async def fail(request: HttpRequest) -> Response:
        raise ZeroDivisionError("inner words")

    async def whose(request: HttpRequest) -> Response:
        return PlainTextResponse(request.scope["state"]["owner"])

    return [Route("/v1/say", say, methods=["POST"]), Route("/v1/fail", fail), Route("/v1/whose", whose)]


async def _events(router: Router, asked: Any, pad: int) -> AsyncGenerator[bytes, None]:
    async with aclosing(router.submit(asked)) as outputs:
        async for output in outputs:
            yield event({"tokens": output.tokens, "finish": output.finish, "error": output.error, "pad": "x" * pad})


async def program(folder: str, options: str) -> int:
    """Prints the address when ready."""
    given = json.loads(options)
    settings, routing = DoorSettings(**given.pop("door", {})), RouterSettings(**given.pop("routing", {}))
    talk = Talk(ready=lambda address: print(address, flush=True), say=lambda text: print(text, file=sys.stderr, flush=True))
    door = Door("tiny", launcher(Path(folder), routing.num_replicas, **given), settings=settings, routing=routing, talk=talk)
    return await door.run(routes(door.router), page())


if __name__ == "__main__":
    sys.exit(asyncio.run(program(sys.argv[1], sys.argv[2])))
