"""The small interface behind which engines run: what the HTTP door sees of one engine here, of many, or of somebody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from colossus.serve.request import EngineStats, Output, Request


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself once it is ready."""

    model: str
    max_sequence_tokens: int
    vocab_size: int
    num_pages: int
    page_tokens: int
    weights: str
    cache: str
    cache_bytes: int
    device: str
    start_s: float  # from process start to ready
    num_programs: int  # compiled or read from the compilation cache during warm-up


class BackendError(Exception):
    """Root of what ``submit`` raises before the first output; nothing of the request was done."""


class Overloaded(BackendError):
    """The queue is full, or admission refused; come back after ``retry_after_s``."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(BackendError):
    """No engine is ready, or the server is draining."""


class Backend(Protocol):
    """Where requests go."""

    @property
    def info(self) -> EngineInfo:
        """Of the engines, which are all alike; raises Unavailable before the first is ready."""
        ...

    def submit(self, request: Request) -> AsyncIterator[Output]:
        """The outputs of a request, up to one with ``finish``. Closing the iterator early (``aclose``) aborts the request.

        Raises BackendError on the first ``__anext__`` when it is not taken. A request whose engine dies after its first output ends
        with Finish.ERROR; before it, the request is given to another engine.
        """
        ...

    def stats(self) -> Sequence[EngineStats]:
        """The newest of each engine that is ready."""
        ...
