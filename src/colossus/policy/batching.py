"""Who computes next, and who gives way: the order of requests that wait for a place, and the choice of whom to preempt.

One key orders both: who waits first is taken first, and who runs last in the same order gives its memory back first. So a request
that was just taken is not at once preempted for one behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from colossus.spec.errors import ColossusError, nearest

PATIENCE_S = 60.0  # a request that waited longer goes before all that did not, first come first served: nobody starves

MIXED_STEP_S = 0.2  # answers under way wait about so long at most for the prompts that a step reads beside them
MIN_STEP_TOKENS = 128  # below this a step's own cost weighs more than its tokens
_STEP_TOKENS = 32  # a shorter budget is a multiple of it


class Order(StrEnum):
    """Whose turn it is."""

    FCFS = "fcfs"  # by arrival
    PRIORITY = "priority"  # by the request's own number, then arrival
    SHORTEST = "shortest"  # by the work that is left, as far as it can be known
    FAIR = "fair"  # by the tokens its owner was served so far


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a controller knows of one request. How long its answer will be is not known.

    :param num_arrival: counts arrivals; breaks ties.
    :param prompt_tokens: that are still to be computed.
    :param most_tokens: of answer that it may still draw.
    """

    num_arrival: int
    arrival_s: float
    priority: int = 0
    owner: str = ""
    prompt_tokens: int = 0
    most_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class BatchingState:
    """The candidates, and what was learned so far.

    :param served_tokens: prompt and answer, by owner; see ``served_after_arrival``.
    :param mean_answer_tokens: of the requests that ended; None before the first.
    """

    order: Order
    candidates: tuple[Candidate, ...]
    now_s: float
    served_tokens: Mapping[str, float] = field(default_factory=dict)
    mean_answer_tokens: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Places in ``candidates``: who is taken next and who is preempted first; None where there is nobody."""

    first: int | None
    last: int | None


def decide(state: BatchingState) -> Decision:
    """The two ends of the order."""
    places = ranking(state)
    return Decision(first=places[0], last=places[-1]) if places else Decision(first=None, last=None)


def ranking(state: BatchingState) -> list[int]:
    """Places in ``candidates``, whose turn is next first."""
    keys = [_key(candidate, state) for candidate in state.candidates]
    return sorted(range(len(keys)), key=keys.__getitem__)


def order_named(name: str) -> Order:
    """The order of this name; raises ColossusError with the nearest one."""
    if name not in list(Order):
        raise ColossusError(f"policy = {name}: not a known order of requests", hint=nearest(name, list(Order)))
    return Order(name)


def step_budget(most_tokens: int, *, num_decoding: int, token_s: float | None) -> int:
    """Tokens of the next step: ``most_tokens``, fewer where answers would wait longer than ``MIXED_STEP_S`` for it.

    :param num_decoding: requests that draw a token in it; as much is left to prompts, where ``most_tokens`` allows.
    :param token_s: of one token in steps that read prompts, as measured; None before the first.
    """
    if not num_decoding or token_s is None:
        return most_tokens
    timely = int(MIXED_STEP_S / token_s) // _STEP_TOKENS * _STEP_TOKENS
    return min(most_tokens, max(timely, MIN_STEP_TOKENS, 2 * num_decoding))


def served_after_arrival(served_tokens: Mapping[str, float], active: Collection[str], owner: str) -> float:
    """What counts as served to an owner who comes back: at least what the least served of the active ones was.

    Else who was away for an hour would hold the machine for an hour's worth of tokens.
    """
    least = min((served_tokens.get(other, 0.0) for other in active if other != owner), default=0.0)
    return max(served_tokens.get(owner, 0.0), least)


def work_tokens(candidate: Candidate, mean_answer_tokens: float | None) -> float:
    """The estimate of what is left: the prompt, and as much answer as is usual, at most what was asked for."""
    answer = candidate.most_tokens if mean_answer_tokens is None else min(candidate.most_tokens, mean_answer_tokens)
    return candidate.prompt_tokens + answer


def _key(candidate: Candidate, state: BatchingState) -> tuple[Any, ...]:
    overdue = state.now_s - candidate.arrival_s > PATIENCE_S
    rank = 0.0 if overdue else _rank(candidate, state)
    return not overdue, rank, candidate.arrival_s, candidate.num_arrival


def _rank(candidate: Candidate, state: BatchingState) -> float:
    if state.order is Order.PRIORITY:
        return candidate.priority
    if state.order is Order.SHORTEST:
        return work_tokens(candidate, state.mean_answer_tokens)
    if state.order is Order.FAIR:
        return state.served_tokens.get(candidate.owner, 0.0)
    return 0.0
