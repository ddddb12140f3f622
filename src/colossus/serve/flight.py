"""A request between its arrival at the router and its last output, whichever engines had it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque

from colossus.serve.backend import BackendError
from colossus.serve.calls import Call
from colossus.serve.replicas import Replica
from colossus.serve.request import Finish, Output, Request

_DIFFERS = "its engine was lost, and another one answered differently from what was already delivered"


class Flight:
    """Outputs in order for one reader. What a second engine computes again is checked against what was delivered and left out."""

    __slots__ = (
        "_failure",
        "_place",
        "_ready",
        "_waiter",
        "ahead_tokens",
        "arrival_s",
        "call",
        "charge_tokens",
        "delivered",
        "done",
        "first_s",
        "is_heard",
        "last_s",
        "num_crashes",
        "placed_s",
        "prefix",
        "replica",
        "request",
        "timer",
    )

    def __init__(self, request: Request, call: Call | None, arrival_s: float) -> None:
        self.request = request
        self.call = call
        self.arrival_s = arrival_s
        self.replica: Replica | None = None
        self.charge_tokens = 0  # what of it counts as its replica's outstanding work
        self.prefix: tuple[int, ...] = ()
        self.num_crashes = 0
        self.first_s: float | None = None
        self.last_s = arrival_s
        self.done = False
        self.timer: asyncio.TimerHandle | None = None
        self.delivered: list[int] = []  # tokens given to the reader
        self.is_heard = False  # the present engine has sent something of it, that is has read its prompt
        self.placed_s = arrival_s
        self.ahead_tokens: int | None = None  # of prompts that the engine reads up to its first token; None where it waits for a place too
        self._place = 0  # tokens that it has sent
        self._ready: deque[Output] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: BackendError | None = None

    @property
    def begun(self) -> bool:
        """Whether a part of the answer is out of our hands: sent to the client, or where we do not know the client, given to the reader."""
        if self.first_s is None:
            return False
        return self.call is None or self.call.begun

    def rewind(self) -> None:
        """It goes to another engine, which begins anew."""
        self._place, self.is_heard = 0, False

    def take(self, output: Output) -> Output | None:
        """The part of an engine's output that is new; queued for the reader. None where all of it was delivered before."""
        fresh = self._unseen(output)
        if fresh is not None:
            self.delivered += fresh.tokens
            self.put(fresh)
        return fresh

    def put(self, output: Output) -> None:
        """For the reader."""
        self.done = output.finish is not None
        self._ready.append(output)
        self._wake()

    def fail(self, failure: BackendError) -> None:
        """Ends it before its first output: the reader gets the exception."""
        self.done = True
        self._failure = failure
        self._wake()

    async def next(self) -> Output:
        """The next output. Raises what ``fail`` was given."""
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._ready.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _unseen(self, output: Output) -> Output | None:
        start, self._place = self._place, self._place + len(output.tokens)
        num_old = len(self.delivered) - start
        if num_old <= 0:
            return output
        old = output.tokens[:num_old]
        if list(old) != self.delivered[start : start + len(old)]:
            return Output(id=output.id, finish=Finish.ERROR, error=_DIFFERS)
        if len(old) == len(output.tokens) and output.finish is None:
            return None
        logprobs = output.logprobs[num_old:] if output.logprobs is not None else None
        return dataclasses.replace(output, tokens=output.tokens[num_old:], logprobs=logprobs, prompt_logprobs=None, num_cached_tokens=None)
