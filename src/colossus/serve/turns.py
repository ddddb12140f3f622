"""One at a time through the event loop: a thousand requests that come at once leave gaps for everything else."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Lets one waiter go on in each round of the loop, first come first served.

    A loop runs all that is ready before it looks at its sockets again. Where 1,000 requests are ready, each with a millisecond of reading
    and checking, a probe of ``/health`` and the tokens of running answers would wait a second.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False  # in this round

    async def take(self) -> None:
        """Returns in the caller's own round, at once where nobody else wants it."""
        loop = asyncio.get_running_loop()
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._pass_on, loop)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _pass_on(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its client has left
                turn.set_result(None)
                loop.call_soon(self._pass_on, loop)
                return
        self._is_taken = False
