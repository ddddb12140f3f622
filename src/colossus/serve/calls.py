"""One HTTP request on its way through the door: whose it is and what came of it. The router finds it without the API's help."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol


class Account(Protocol):
    """Where an owner's tokens are counted."""

    def spend(self, num_tokens: int) -> None: ...


@dataclass(eq=False, kw_only=True, slots=True)
class Call:
    """``begun``: the response's head is sent, so that what went wrong later cannot be undone. Times on ``time.monotonic``.

    ``complete``: ids of requests whose answer a stop string has ended, which their engine cannot know.
    """

    id: str
    method: str
    route: str
    owner: str = ""
    account: Account | None = None
    started_s: float = field(default_factory=time.monotonic)
    status: int | None = None
    begun: bool = False
    complete: set[str] = field(default_factory=set)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    first_output_s: float | None = None
    error: str | None = None

    def count_prompt(self, num_tokens: int) -> None:
        """A prompt was given to an engine."""
        self.num_prompt_tokens += num_tokens
        if self.account is not None:
            self.account.spend(num_tokens)

    def count_output(self, num_tokens: int, now_s: float) -> None:
        """Tokens came from an engine."""
        if self.first_output_s is None:
            self.first_output_s = now_s
        self.num_output_tokens += num_tokens
        if self.account is not None:
            self.account.spend(num_tokens)


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)
