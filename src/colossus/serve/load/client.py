"""One streamed request, watched: when text came, how many tokens the server counted, how it failed. Cheap, for the machine is the server's too."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import aiohttp

from colossus.serve.load.prompts import Prompts, chat_messages
from colossus.serve.load.sample import Sample
from colossus.serve.load.server import Line, Server, reason, said
from colossus.serve.load.workload import Ask

# Text that is not empty, and what else an event may tell; a quote within a text is escaped, so that neither is found in one.
_TEXT = re.compile(rb'"(?:text|content)":\s*"[^"]')
_MORE = re.compile(rb'"(?:finish_reason|usage|error)":\s*[^\sn]')
_JSON = {"Content-Type": "application/json"}
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
    listener = _Listener(sample, now_s)
    sample.sent_s = now_s()
    try:
        async with asyncio.timeout(target.timeout_s):
            await _post(session, target, body, listener)
    except TimeoutError:
        _fail(sample, "timeout", f"no end after {target.timeout_s:g} s")
    except (aiohttp.ClientError, OSError) as error:
        _fail(sample, "connection", reason(error))
    else:
        if sample.error is None and not listener.is_whole and sample.finish is None:
            _fail(sample, "cut off", "the stream ended before the answer did")
    if not sample.end_s or sample.error is not None:
        sample.end_s = now_s()


async def _post(session: aiohttp.ClientSession, target: Target, body: bytes, listener: _Listener) -> None:
    """Some servers close a kept connection without a word; a request that meets that at once is sent again."""
    url = f"{target.server.url}{target.endpoint.path}"
    while True:
        begin_s, line = time.perf_counter(), Line()
        try:
            response = await session.post(url, data=body, headers=_JSON, trace_request_ctx=line)
            break
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not line.was_kept or time.perf_counter() - begin_s > _STALE_S:
                raise
    async with response:
        if response.status != 200:
            _fail(listener.sample, str(response.status), said(await response.text(errors="replace")))
            return
        async for piece in response.content.iter_any():
            listener.take(piece)


class _Listener:
    """Takes a stream piece by piece. An event that is only text is told by its bytes, for all of JSON costs more than the rest together."""

    def __init__(self, sample: Sample, now_s: Callable[[], float]) -> None:
        self.sample, self.now_s = sample, now_s
        self.is_whole = False
        self._rest = b""

    def take(self, piece: bytes) -> None:
        at_s = self.now_s()
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line, at_s)

    def _event(self, line: bytes, at_s: float) -> None:
        sample = self.sample
        if _TEXT.search(line) and not _MORE.search(line):
            if sample.error is None:
                sample.texts_s.append(at_s)
        elif line[5:].strip() == b"[DONE]":
            self.is_whole = True
        elif sample.error is None:
            self._whole_event(line[5:], at_s)

    def _whole_event(self, data: bytes, at_s: float) -> None:
        try:
            _take(self.sample, json.loads(data), at_s)
        except (ValueError, TypeError, AttributeError):
            _fail(self.sample, "no event", data[:200].decode(errors="replace"))


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
