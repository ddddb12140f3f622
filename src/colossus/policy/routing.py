"""Which of several engines gets a request, and whether one that lost its engine is tried again.

An engine computes its work in about the order it came, and what it has of a prompt in its prefix cache is no work. So the request
goes where the least stands before its first token: the engine's outstanding tokens, and the part of the prompt it has yet to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What a router knows of one engine.

    :param num_outstanding_tokens: of prompts and (expected) answers that it was given and has not computed.
    :param num_cached_tokens: of this request's prompt that its prefix cache is believed to hold.
    :param num_requests: that it was given and has not ended.
    """

    index: int
    ready: bool = True
    num_outstanding_tokens: int = 0
    num_cached_tokens: int = 0
    num_requests: int = 0


@dataclass(frozen=True, kw_only=True)
class RoutingState:
    num_prompt_tokens: int
    engines: Sequence[EngineState]


@dataclass(frozen=True, kw_only=True)
class Route:
    """``index`` of the engine; ``num_tokens_ahead`` of the request's first token there."""

    index: int
    num_tokens_ahead: int


def choose(state: RoutingState) -> Route | None:
    """The ready engine with the least work before the first token; then the one with fewest requests, then the first. None where none is ready."""
    ready = [engine for engine in state.engines if engine.ready]
    if not ready:
        return None
    best = min(ready, key=lambda engine: (_tokens_ahead(engine, state), engine.num_requests, engine.index))
    return Route(index=best.index, num_tokens_ahead=_tokens_ahead(best, state))


def _tokens_ahead(engine: EngineState, state: RoutingState) -> int:
    return engine.num_outstanding_tokens + max(0, state.num_prompt_tokens - engine.num_cached_tokens)


@dataclass(frozen=True, kw_only=True)
class LossState:
    """A request whose engine is gone.

    :param num_crashes: engines that ended by themselves, or hung, while they had it, this one included: it may be the cause.
        One killed from outside says nothing of its requests, and does not count: the request's own deadline ends such retries.
    :param begun: its client has seen a part of the answer.
    """

    num_crashes: int
    begun: bool


@dataclass(frozen=True, kw_only=True)
class Retry:
    """``reason`` where it is not tried again."""

    again: bool
    reason: str = ""


# An engine's crash is an accident; two with the same request are its doing, and a third engine is not given to it.
MAX_CRASHES = 2


def retry(state: LossState) -> Retry:
    """Whether to give the request to another engine."""
    if state.begun:
        return Retry(again=False, reason="its engine was lost after the answer had begun")
    if state.num_crashes >= MAX_CRASHES:
        return Retry(again=False, reason=f"{state.num_crashes} engines crashed while they worked on it")
    return Retry(again=True)
