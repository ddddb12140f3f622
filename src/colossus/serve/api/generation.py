"""Requests to a backend and their answers as text: read as they come, several at once, given up as soon as nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from colossus.serve.api.errors import ApiError
from colossus.serve.backend import Backend
from colossus.serve.calls import current_call
from colossus.serve.detokenize import Detokenizer, Stops
from colossus.serve.request import Finish, Output, Request, TokenLogprob


@dataclass(frozen=True, slots=True)
class Written:
    """A token's logprob, and where in the answer's text it begins."""

    entry: TokenLogprob
    start: int


@dataclass(slots=True)
class Piece:
    """What is new of one answer.

    :ivar finish: stop or length, on the last one.
    :ivar stop_reason: the stop string, or the asked-for stop token, that ended it.
    """

    text: str = ""
    written: list[Written] = field(default_factory=list)
    num_tokens: int = 0
    finish: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    num_cached_tokens: int | None = None


class Reader:
    """One answer's tokens as text, up to a stop string."""

    def __init__(self, detokenizer: Detokenizer, stops: Stops | None, *, request: Request, own_stop_ids: Collection[int], silent: bool = False) -> None:
        """
        :param own_stop_ids: stop tokens that the caller named, which the answer tells as its stop_reason.
        :param silent: the answer's tokens are not wanted (max_tokens = 0: the engine draws one all the same).
        """
        self._detokenizer, self._stops = detokenizer, stops
        self._stop_ids = frozenset(request.sampling.stop_token_ids)
        self._min_tokens = request.sampling.min_tokens
        self._own_stop_ids, self._silent = own_stop_ids, silent
        self._by_token = stops is not None or request.sampling.num_logprobs is not None
        self._num_tokens = self._num_decoded = self._num_out = 0
        self._waiting: list[Written] = []

    def read(self, output: Output) -> Piece:
        """Raises ApiError where the engine gave the request up."""
        _check_end(output)
        piece = Piece(prompt_logprobs=output.prompt_logprobs, num_cached_tokens=output.num_cached_tokens)
        if self._silent:
            piece.finish = None if output.finish is None else Finish.LENGTH.value
            return piece
        tokens = output.tokens
        if output.finish is Finish.STOP and tokens and tokens[-1] in self._stop_ids:
            piece.stop_reason = tokens[-1] if tokens[-1] in self._own_stop_ids else None
            tokens = tokens[:-1]
        self._decode(tokens, output, piece)
        if piece.finish is None:
            piece.num_tokens = len(output.tokens)
            if output.finish is not None:
                self._end(piece, output.finish)
        return piece

    def _decode(self, tokens: Sequence[int], output: Output, piece: Piece) -> None:
        if not self._by_token:
            piece.text = self._detokenizer.push(tokens)
            return
        for place, token in enumerate(tokens):
            self._num_tokens += 1
            if output.logprobs is not None:
                self._waiting.append(Written(output.logprobs[place], self._num_decoded))
            if self._add(self._detokenizer.push((token,)), piece):
                piece.num_tokens = place + 1
                return
        self._release(piece)

    def _add(self, text: str, piece: Piece) -> bool:
        """Gives text out as far as no stop string may begin in it; whether one ended the answer."""
        self._num_decoded += len(text)
        stop = None
        if self._stops is not None and self._num_tokens >= self._min_tokens:
            cut = self._stops.push(text)
            text, stop = cut.text, cut.stop
        piece.text += text
        self._num_out += len(text)
        if stop is not None:
            piece.finish, piece.stop_reason = Finish.STOP.value, stop
            self._release(piece)
            self._waiting.clear()
        return stop is not None

    def _release(self, piece: Piece) -> None:
        """Logprobs go out with the text of their tokens."""
        nothing_held = self._num_out == self._num_decoded and piece.finish is None
        while self._waiting and (nothing_held or self._waiting[0].start < self._num_out):
            piece.written.append(self._waiting.pop(0))

    def _end(self, piece: Piece, finish: Finish) -> None:
        ended = self._add(self._detokenizer.flush(), piece)
        if not ended:
            held = self._stops.flush() if self._stops is not None else ""
            piece.text += held
            self._num_out += len(held)
            self._release(piece)
            piece.finish = finish.value


def _check_end(output: Output) -> None:
    if output.finish is Finish.ERROR:
        raise ApiError(output.error or "the engine could not go on with this request", status=500, code="engine_error")
    if output.finish is Finish.ABORT:
        raise ApiError(output.error or "the request was ended before its answer was complete", status=504, code="request_ended")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One answer to be had: its place among the body's answers, its request, and how it is read."""

    index: int
    request: Request
    reader: Reader


async def answer(backend: Backend, task: Task) -> AsyncGenerator[Piece, None]:
    """One answer's pieces. Closing this early, or a stop string, aborts the request."""
    outputs = backend.submit(task.request)
    try:
        async for output in outputs:
            piece = task.reader.read(output)
            if piece.finish is not None and output.finish is None and (call := current_call.get()) is not None:
                call.complete.add(task.request.id)
            yield piece
            if piece.finish is not None:
                return
    finally:
        await _close(outputs)
    raise _endless()


async def last_outputs(backend: Backend, requests: Sequence[Request]) -> list[Output]:
    """The last output of each request; one's failure ends all."""
    workers = [asyncio.create_task(_last_output(backend, request)) for request in requests]
    try:
        return await asyncio.gather(*workers)
    finally:
        await _end_all(workers)


async def _last_output(backend: Backend, request: Request) -> Output:
    outputs = backend.submit(request)
    try:
        async for output in outputs:
            _check_end(output)
            if output.finish is not None:
                return output
    finally:
        await _close(outputs)
    raise _endless()


def _endless() -> ApiError:
    return ApiError("the engine ended this request without an end", status=500, code="engine_error")


async def _end_all(workers: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels those that still run, and waits until they have cleaned up."""
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


async def _close(outputs: AsyncIterator[Output]) -> None:
    if isinstance(outputs, AsyncGenerator) or hasattr(outputs, "aclose"):
        await outputs.aclose()


async def answers(backend: Backend, tasks: Sequence[Task]) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of several answers as they come, each with its answer's index. Closing this, or one's failure, ends all."""
    if len(tasks) == 1:
        async with aclosing(answer(backend, tasks[0])) as pieces:
            async for piece in pieces:
                yield tasks[0].index, piece
        return
    queue: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue(maxsize=len(tasks) * 4)
    workers = [asyncio.create_task(_feed(backend, task, queue)) for task in tasks]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= item[1].finish is not None
            yield item
    finally:
        await _end_all(workers)


async def _feed(backend: Backend, task: Task, queue: asyncio.Queue[tuple[int, Piece] | Exception]) -> None:
    try:
        async with aclosing(answer(backend, task)) as pieces:
            async for piece in pieces:
                await queue.put((task.index, piece))
    except Exception as error:  # noqa: BLE001 (it is raised again where the answers are read)
        await queue.put(error)


@dataclass(slots=True)
class Whole:
    """One answer, complete."""

    text: str = ""
    written: list[Written] = field(default_factory=list)
    num_tokens: int = 0
    finish: str = ""
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    num_cached_tokens: int = 0


async def whole(backend: Backend, tasks: Sequence[Task]) -> list[Whole]:
    """All answers to their ends, by index from 0."""
    texts: list[list[str]] = [[] for _ in tasks]
    wholes = [Whole() for _ in tasks]
    async with aclosing(answers(backend, tasks)) as pieces:
        async for index, piece in pieces:
            done = wholes[index]
            texts[index].append(piece.text)
            done.written += piece.written
            done.num_tokens += piece.num_tokens
            done.prompt_logprobs = done.prompt_logprobs or piece.prompt_logprobs
            done.num_cached_tokens = max(done.num_cached_tokens, piece.num_cached_tokens or 0)
            done.finish, done.stop_reason = piece.finish or "", piece.stop_reason
    for done, parts in zip(wholes, texts, strict=True):
        done.text = "".join(parts)
    return wholes
