"""A small server with OpenAI's API that says what a test wrote, in a thread: the test double of a model behind HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Script:
    """How the server behaves. ``gap_s``: before each token. ``fail``: status by number of request."""

    reply: str | None = None  # of chat; None repeats the last message
    gap_s: float = 0.0
    first_gap_s: float = 0.0
    usage: bool = True
    tokenizer: bool = True
    key: str | None = None
    fail: dict[int, int] = field(default_factory=dict)
    fail_words: str = "scripted"
    cut_after: int | None = None  # events, then the connection is gone
    error_after: int | None = None  # events, then an error event
    drops_kept_lines: bool = False  # closes each connection after its answer, without a word before
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_gone: int = 0  # clients that left before the end
    most_at_once: int = 0
    at_once: int = 0
    page: Any = None  # more routes
    url: str = ""


SCRIPT = web.AppKey("script", Script)


@contextmanager
def serving(script: Script) -> Iterator[Script]:
    """Serves until the block ends; ``script.url`` is the address."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    thread = threading.Thread(target=_serve, args=(loop, script, ready), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield script
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)


def _serve(loop: asyncio.AbstractEventLoop, script: Script, ready: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    app = web.Application(client_max_size=2**26)
    app[SCRIPT] = script
    app.add_routes(
        [
            web.get("/v1/models", _models),
            web.post("/tokenize", _tokenize),
            web.post("/v1/completions", _completions),
            web.post("/v1/chat/completions", _chat),
            *(script.page or ()),
        ]
    )
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    script.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    ready.set()
    loop.run_forever()
    loop.run_until_complete(runner.cleanup())
    loop.close()


def _refusal(request: web.Request) -> web.Response | None:
    script: Script = request.app[SCRIPT]
    if script.key is not None and request.headers.get("Authorization") != f"Bearer {script.key}":
        return web.json_response(
            {"error": {"message": "Give a valid key.", "type": "authentication_error", "param": None, "code": "invalid_api_key"}}, status=401
        )
    return None


async def _models(request: web.Request) -> web.Response:
    return _refusal(request) or web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model", "max_model_len": 512}]})


async def _tokenize(request: web.Request) -> web.Response:
    """A word is a token; a chat has three more."""
    if not request.app[SCRIPT].tokenizer:
        raise web.HTTPNotFound
    body = await request.json()
    text = body.get("prompt")
    words = text.split() if text is not None else [word for message in body["messages"] for word in message["content"].split()] + ["<"] * 3
    return web.json_response({"tokens": [sum(word.encode()) % 500 for word in words], "count": len(words)})


async def _completions(request: web.Request) -> web.StreamResponse:
    return await _stream(request, lambda text, first: {"index": 0, "text": text}, first_event=None)


async def _chat(request: web.Request) -> web.StreamResponse:
    return await _stream(
        request, lambda text, first: {"index": 0, "delta": {"content": text}}, first_event={"index": 0, "delta": {"role": "assistant", "content": ""}}
    )


async def _stream(request: web.Request, choice: Any, first_event: dict[str, Any] | None) -> web.StreamResponse:
    script: Script = request.app[SCRIPT]
    if (refused := _refusal(request)) is not None:
        return refused
    body = await request.json()
    number = len(script.bodies)
    script.bodies.append(body)
    script.headers.append(dict(request.headers))
    if (status := script.fail.get(number)) is not None:
        return web.json_response({"error": {"message": f"{script.fail_words} {status}"}}, status=status, headers={"Retry-After": "1"})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    script.at_once += 1
    script.most_at_once = max(script.most_at_once, script.at_once)
    try:
        await _say(response, script, body, choice, first_event)
    except (asyncio.CancelledError, ConnectionError):
        script.num_gone += 1
        raise
    finally:
        script.at_once -= 1
    if script.drops_kept_lines:
        await response.write_eof()
        asyncio.get_running_loop().call_soon(request.transport.close)  # type: ignore[union-attr]
    return response


def _words(script: Script, body: dict[str, Any]) -> list[str]:
    if "prompt" in body:
        return ["word "] * body["max_tokens"]
    text = body["messages"][-1]["content"] if script.reply is None else script.reply
    return [word + " " for word in text.split(" ")]


async def _say(response: web.StreamResponse, script: Script, body: dict[str, Any], choice: Any, first_event: dict[str, Any] | None) -> None:
    async def send(data: Any) -> None:
        await response.write(b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n")

    await asyncio.sleep(script.first_gap_s)
    if first_event is not None:
        await send({"choices": [first_event]})
    words = _words(script, body)
    for number, word in enumerate(words):
        if number == script.cut_after:
            with suppress(AttributeError):
                response._req.transport.abort()
            return
        if number == script.error_after:
            await send({"error": {"message": "scripted failure", "type": "server_error"}})
            return
        await asyncio.sleep(script.gap_s)
        await send({"choices": [choice(word, number == 0)]})
    await send({"choices": [choice("", False) | {"finish_reason": "length" if "prompt" in body else "stop"}]})
    if script.usage and (body.get("stream_options") or {}).get("include_usage"):
        prompt = body.get("prompt") or body["messages"][-1]["content"].split()
        size = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        await send({"choices": [], "usage": {"prompt_tokens": size, "completion_tokens": len(words), "prompt_tokens_details": {"cached_tokens": 0}}})
    await send(b"[DONE]")
