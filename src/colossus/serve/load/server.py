"""A server as its clients see it: where it is, which model, what its tokenizer makes of words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from colossus.serve.load.errors import ServerError
from colossus.spec.errors import nearest

_PATIENCE_S = 30.0  # for answers that take no computing


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server and the model asked of it. ``max_sequence_tokens``: where it says so."""

    url: str
    model: str
    api_key: str | None = None
    max_sequence_tokens: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        return headers(self.api_key)


def headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def base_url(url: str) -> str:
    """``127.0.0.1:8000``, ``http://host:8000/`` and ``http://host:8000/v1`` name the same server."""
    whole = url if "://" in url else f"http://{url}"
    return whole.rstrip("/").removesuffix("/v1")


@dataclass
class Line:
    """Given as a request's ``trace_request_ctx``: whether its connection had served another one before."""

    was_kept: bool = False


@asynccontextmanager
async def connections(api_key: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that opens as many connections as there are requests, keeps them, and asks for nothing compressed."""

    async def kept(session: aiohttp.ClientSession, context: Any, params: Any) -> None:
        if isinstance(context.trace_request_ctx, Line):
            context.trace_request_ctx.was_kept = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(kept)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"Accept-Encoding": "identity", **headers(api_key)},
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=2**18,
        trace_configs=[tracing],
    ) as session:
        yield session


async def find_server(session: aiohttp.ClientSession, url: str, model: str | None, api_key: str | None = None) -> Server:
    """Asks ``/v1/models``; without ``model`` the first one listed."""
    address = base_url(url)
    data = await get_json(session, f"{address}/v1/models")
    listed = {str(entry.get("id")): entry for entry in data.get("data", []) if isinstance(entry, dict)} if isinstance(data, dict) else {}
    if not listed:
        raise ServerError(f"{address}/v1/models lists no models", hint="give the address of an OpenAI-compatible server, e.g. http://127.0.0.1:8000")
    if model is not None and model not in listed:
        raise ServerError(f"{address} has no model {model!r}", hint=nearest(model, listed))
    name = model or next(iter(listed))
    return Server(url=address, model=name, api_key=api_key, max_sequence_tokens=_most_tokens(listed[name]))


def _most_tokens(entry: dict[str, Any]) -> int | None:
    """vLLM's field and ours; llama.cpp's ``meta.n_ctx_train`` is the model's, not the server's."""
    found = entry.get("max_model_len")
    return found if isinstance(found, int) and found > 0 else None


async def get_json(session: aiohttp.ClientSession, url: str) -> Any:
    """Raises ServerError with the server's own words."""
    return await _json(session, "GET", url, None)


async def post_json(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Any:
    """The same with a body."""
    return await _json(session, "POST", url, body)


async def _json(session: aiohttp.ClientSession, method: str, url: str, body: dict[str, Any] | None) -> Any:
    try:
        async with session.request(method, url, json=body, timeout=aiohttp.ClientTimeout(total=_PATIENCE_S)) as response:
            text = await response.text()
            if response.status != 200:
                hint = "give a key with --api-key or COLOSSUS_API_KEY" if response.status == 401 else None
                raise ServerError(f"{url} answered {response.status}: {said(text)}", hint=hint)
            return json.loads(text)
    except aiohttp.InvalidURL:
        raise ServerError(f"{url!r} is no address", hint="e.g. http://127.0.0.1:8000") from None
    except aiohttp.ClientError as error:
        raise ServerError(f"{url} cannot be reached: {reason(error)}", hint="is the server running? start one with: colossus serve MODEL") from None
    except TimeoutError:
        raise ServerError(f"{url} did not answer within {_PATIENCE_S:g} s", hint="is it a server of models, and is it ready?") from None
    except ValueError:
        raise ServerError(f"{url} answered no JSON", hint="give the address of an OpenAI-compatible server, e.g. http://127.0.0.1:8000") from None


def reason(error: Exception) -> str:
    """Less aiohttp's word on a connection without certificates."""
    return str(error).replace(" ssl:default", "")


def said(text: str) -> str:
    """The message of an error body, in OpenAI's shape or any other."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:200] or "nothing"


async def tokenize(session: aiohttp.ClientSession, server: Server, text: str) -> list[int] | None:
    """Tokens without a beginning-of-sequence token, from ``/tokenize`` as vLLM, llama.cpp and we have it; None of a server without."""
    body = {"model": server.model, "prompt": text, "content": text, "add_special_tokens": False, "add_special": False}
    return _ids(await _tokenized(session, server, body))


async def count_chat_tokens(session: aiohttp.ClientSession, server: Server, messages: list[dict[str, str]]) -> int | None:
    """Of messages in the model's chat template, up to where the answer begins; None where the server cannot tell."""
    body = {"model": server.model, "messages": messages, "add_generation_prompt": True}
    ids = _ids(await _tokenized(session, server, body))
    return len(ids) if ids else None


async def _tokenized(session: aiohttp.ClientSession, server: Server, body: dict[str, Any]) -> Any:
    try:
        return await post_json(session, f"{server.url}/tokenize", body)
    except ServerError:
        return None


def _ids(data: Any) -> list[int] | None:
    tokens = data.get("tokens") if isinstance(data, dict) else None
    return [int(token) for token in tokens] if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else None


async def gather_limited(tasks: list[Any], at_once: int = 8) -> list[Any]:
    """Awaits all, so many at once, in order."""
    turn = asyncio.Semaphore(at_once)

    async def one(task: Any) -> Any:
        async with turn:
            return await task

    return list(await asyncio.gather(*map(one, tasks)))
