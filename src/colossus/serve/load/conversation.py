"""A conversation with a model behind ``/v1/chat/completions``: what was said, and the next answer as it comes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from colossus.serve.load.client import events
from colossus.serve.load.errors import ServerError
from colossus.serve.load.server import Server, reason, said


@dataclass(frozen=True, kw_only=True)
class Style:
    """How answers are drawn; what is None is left to the server."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def body(self) -> dict[str, Any]:
        named = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "max_tokens": self.max_tokens, "seed": self.seed}
        return {name: value for name, value in named.items() if value is not None}


@dataclass
class Answer:
    """What is known of the newest answer. ``num_tokens`` is the server's count; ``finish`` is None where it was stopped."""

    text: str = ""
    began_s: float = 0.0
    first_s: float | None = None
    end_s: float = 0.0
    num_tokens: int | None = None
    finish: str | None = None
    num_forgotten: int = 0  # earlier exchanges, dropped to make room

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.began_s

    @property
    def tokens_per_s(self) -> float | None:
        """After the first token."""
        if self.num_tokens is None or self.num_tokens < 2 or self.first_s is None or self.end_s <= self.first_s:
            return None
        return (self.num_tokens - 1) / (self.end_s - self.first_s)


class _TooLong(Exception):
    """The conversation is longer than the model's context."""


@dataclass
class Conversation:
    """Everything said so far. ``system`` comes first where given."""

    server: Server
    style: Style = field(default_factory=Style)
    system: str | None = None
    exchanges: list[tuple[str, str]] = field(default_factory=list)
    last: Answer = field(default_factory=Answer)

    def messages(self, more: str | None = None) -> list[dict[str, str]]:
        """As the API takes them; ``more`` is what the user says now."""
        told = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in self.exchanges:
            told += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return told + ([{"role": "user", "content": more}] if more is not None else [])

    async def ask(self, session: aiohttp.ClientSession, text: str) -> AsyncGenerator[str]:
        """The answer, piece by piece. Ended early, what came of it stays part of the conversation.

        Where the conversation has grown longer than the model's context, the oldest exchanges are forgotten.
        """
        self.last = Answer(began_s=time.perf_counter())
        try:
            while True:
                try:
                    async for piece in self._stream(session, text):
                        yield piece
                    return
                except _TooLong as error:
                    if not self.exchanges:
                        raise ServerError(str(error), hint="say less at once, or serve a model with a longer context") from None
                    del self.exchanges[0]
                    self.last.num_forgotten += 1
        finally:
            self.last.end_s = time.perf_counter()
            if self.last.text:
                self.exchanges.append((text, self.last.text))

    async def _stream(self, session: aiohttp.ClientSession, text: str) -> AsyncGenerator[str]:
        body = {"model": self.server.model, "messages": self.messages(text), "stream": True, "stream_options": {"include_usage": True}} | self.style.body()
        url = f"{self.server.url}/v1/chat/completions"
        try:
            async with session.post(url, json=body, headers=self.server.headers) as response:
                if response.status != 200:
                    raise _refusal(url, response, await response.text())
                async for data in events(response):
                    if data != b"[DONE]":
                        for piece in self._take(json.loads(data)):
                            yield piece
        except aiohttp.ClientError as error:
            raise ServerError(f"{url}: the answer broke off: {reason(error)}", hint="is the server still running?") from None
        except json.JSONDecodeError:
            raise ServerError(f"{url} streams what is no JSON", hint="give the address of an OpenAI-compatible server") from None

    def _take(self, event: dict[str, Any]) -> list[str]:
        if error := event.get("error"):
            raise ServerError(str(error.get("message", error) if isinstance(error, dict) else error))
        if usage := event.get("usage"):
            self.last.num_tokens = usage.get("completion_tokens")
        pieces = []
        for choice in event.get("choices") or ():
            self.last.finish = choice.get("finish_reason") or self.last.finish
            if piece := (choice.get("delta") or {}).get("content"):
                self.last.first_s = self.last.first_s or time.perf_counter()
                self.last.text += piece
                pieces.append(piece)
        return pieces


def _refusal(url: str, response: aiohttp.ClientResponse, text: str) -> Exception:
    message = said(text)
    if response.status in (400, 413) and "context" in text.lower():
        return _TooLong(f"{url} answered {response.status}: {message}")
    hint = {401: "give a key with --api-key or COLOSSUS_API_KEY", 429: "the server is busy; say it again in a moment"}.get(response.status)
    return ServerError(f"{url} answered {response.status}: {message}", hint=hint)
