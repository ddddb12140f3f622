"""One streamed request, watched: when text came, how many tokens the server counted, how it failed. Cheap, for the machine is the server's too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import aiohttp

from colossus.serve.load.prompts import Prompts, chat_messages
from colossus.serve.load.sample import Sample
from colossus.serve.load.server import Line, Server, said
from colossus.serve.load.workload import Ask

_STALE_S = 0.25  # a connection that its server has closed says so sooner


class Endpoint(StrEnum):
    """Of OpenAI's API."""

    COMPLETIONS = "completions"
    CHAT = "chat"

    @property
    def path(self) -> str:
        return "/v1/completions" if self is Endpoint.COMPLETIONS else "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go and what they say beside the prompt."""

    server: Server
    endpoint: Endpoint
    prompts: Prompts
    temperature: float = 0.0
    ignore_eos: bool = True
    timeout_s: float = 600.0

    def body(self, ask: Ask) -> dict[str, Any]:
        """``n_predict`` and ``cache_prompt`` are not sent: what all servers understand alike."""
        prompt = self.prompts.of(ask)
        body: dict[str, Any] = {"prompt": prompt} if self.endpoint is Endpoint.COMPLETIONS else {"messages": chat_messages(str(prompt))}
        body |= {"model": self.server.model, "max_tokens": ask.output_tokens, "temperature": self.temperature, "stream": True}
        return body | {"stream_options": {"include_usage": True}, "ignore_eos": self.ignore_eos}


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of server-sent events, as it comes; the ``[DONE]`` at the end too."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


async def ask_server(session: aiohttp.ClientSession, target: Target, sample: Sample, now_s: Callable[[], float]) -> None:
    """Sends the sample's ask and fills in what comes of it; errors are part of that."""
    body = json.dumps(target.body(sample.ask)).encode()
    sample.sent_s = now_s()
    try:
        async with asyncio.timeout(target.timeout_s):
            await _converse(session, target, body, sample, now_s)
    except TimeoutError:
        _fail(sample, "timeout", f"no end after {target.timeout_s:g} s")
    except aiohttp.ClientError as error:
        _fail(sample, "connection", f"{type(error).__name__}: {error}")
    if not sample.end_s or sample.error is not None:
        sample.end_s = now_s()


async def _converse(session: aiohttp.ClientSession, target: Target, body: bytes, sample: Sample, now_s: Callable[[], float]) -> None:
    """Some servers close a kept connection without a word; a request that meets that at once is sent again, as every HTTP client does."""
    while True:
        line, begin_s = Line(), now_s()
        try:
            return await _listen(session, target, body, sample, now_s, line)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not line.reused or sample.texts_s or now_s() - begin_s > _STALE_S:
                raise


async def _listen(session: aiohttp.ClientSession, target: Target, body: bytes, sample: Sample, now_s: Callable[[], float], line: Line) -> None:
    url = target.server.url + target.endpoint.path
    async with session.post(url, data=body, headers={"Content-Type": "application/json"}, trace_request_ctx=line) as response:
        if response.status != 200:
            _fail(sample, str(response.status), said(await response.text()))
            return
        whole = False
        async for data in events(response):
            if data == b"[DONE]":
                whole = True
            elif sample.error is None:
                _take(sample, json.loads(data), now_s())
        if sample.error is None and not whole and sample.finish is None:
            _fail(sample, "cut off", "the stream ended before the answer did")


def _take(sample: Sample, event: dict[str, Any], at_s: float) -> None:
    """One event: text, an end, a count, or an error."""
    if error := event.get("error"):
        _fail(sample, "error event", str(error.get("message", error) if isinstance(error, dict) else error))
        return
    for choice in event.get("choices") or ():
        if choice.get("text") or has_text(choice.get("delta")):
            sample.texts_s.append(at_s)
        if choice.get("finish_reason"):
            sample.finish, sample.end_s = choice["finish_reason"], at_s
    if usage := event.get("usage"):
        sample.num_prompt_tokens, sample.num_output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        sample.num_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def has_text(delta: Any) -> bool:
    """Of an answer, of its reasoning, or of a tool call."""
    return isinstance(delta, dict) and any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))


def _fail(sample: Sample, kind: str, detail: str) -> None:
    sample.error, sample.detail = kind, detail
