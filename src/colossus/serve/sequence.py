"""A request inside the engine: its tokens so far and where it stands; and the places of the requests that run, as arrays.

A step treats all its rows at once, so what changes with every step lies in arrays over the slots, not in objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from colossus.nn.paged import NULL_PAGE, PAGE_TOKENS
from colossus.policy.batching import Candidate
from colossus.serve.lookup import Drafter
from colossus.serve.request import Request, TokenLogprob

MAX_STOPS = 32
MAX_BIASES = 300
NO_TOKEN = -1


class Level(IntEnum):
    """What drawing a token of a request takes; each can do what those before it do."""

    PLAIN = 0
    EDITED = 1  # penalties, biases, a grammar, stop tokens that are not allowed yet, or log-probabilities


class Purpose(IntEnum):
    """What is computed of a request now. A step serves one purpose."""

    ANSWER = 0
    SCORE = 1  # log-probabilities of the prompt; its last token is left to ANSWER
    EMBED = 2


@dataclass(slots=True, eq=False)
class Sequence:
    """One request and what the engine knows of it.

    :param number: counts arrivals.
    :param tokens: room for all it may become; ``num_known`` are there.
    :param limit: tokens of prompt and answer at most.
    :param num_flights: steps that were dispatched with it and not read yet.
    :param num_preemptions: results of steps before the last one are void, where they are sums over the prompt.
    :param keys: of its full pages, as the pool knows them; of ``num_remembered`` of them the pool was told.
    """

    request: Request
    number: int
    tokens: np.ndarray
    num_known: int
    num_prompt: int
    limit: int
    level: Level
    purpose: Purpose
    stops: frozenset[int] = frozenset()
    slot: int | None = None
    num_flights: int = 0
    num_preemptions: int = 0
    ended: bool = False
    keys: list[bytes] = field(default_factory=list)
    num_remembered: int = 0
    num_cached: int | None = None  # prompt tokens that the cache gave; None before it ran first
    first_output: bool = True
    scores: list[TokenLogprob] = field(default_factory=list)
    hidden_sum: np.ndarray | None = None
    matcher: Any = None
    drafter: Drafter | None = None

    @property
    def known(self) -> np.ndarray:
        return self.tokens[: self.num_known]

    @property
    def wants_cache(self) -> bool:
        """Whether cached pages may stand for computed ones: a sum over the prompt needs each token computed."""
        return self.purpose is Purpose.ANSWER

    def candidate(self) -> Candidate:
        """As the order of requests sees it."""
        request = self.request
        return Candidate(
            num_arrival=self.number,
            arrival_s=request.arrival_s,
            priority=request.priority,
            owner=request.owner,
            prompt_tokens=self.num_known,
            most_tokens=self.limit - self.num_known,
        )


def level_of(request: Request) -> Level:
    """The least that can draw the request's tokens."""
    sampling = request.sampling
    changes = (
        *(sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty != 1),
        *(sampling.logit_bias, sampling.grammar is not None, sampling.min_tokens and sampling.stop_token_ids),
        sampling.num_logprobs is not None,
    )
    return Level.EDITED if any(changes) else Level.PLAIN


class Slots:
    """Of the requests that run, by slot. ``num_slots`` itself, one past the last, is the slot of rows that are nobody's.

    ``length`` counts tokens that are known or being drawn, ``computed`` those whose keys and values are dispatched.
    """

    def __init__(self, num_slots: int, max_pages: int, vocab_size: int) -> None:
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.holder: list[Sequence | None] = [None] * num_slots
        self.free = list(reversed(range(num_slots)))
        rows = num_slots + 1
        self.length, self.computed, self.limit, self.num_prompt, self.num_pages = (np.zeros(rows, np.int32) for _ in range(5))
        self.table = np.full((rows, max_pages), NULL_PAGE, np.int32)
        self.level, self.purpose = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        self.wants_logprobs = np.zeros(rows, bool)
        self.waits = np.zeros(rows, bool)  # needs each token on the host before the next step
        self.held = np.zeros(rows, bool)  # waits, and is in flight
        self.fresh = np.zeros(rows, bool)  # its last token is known here and not on the device
        self.seed, self.top_k = np.zeros(rows, np.uint32), np.full(rows, vocab_size, np.int32)
        self.temperature, self.min_p = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
        self.top_p = np.ones(rows, np.float32)
        self.penalties = np.tile(np.asarray([0, 0, 1], np.float32), (rows, 1))  # presence, frequency, repetition
        self.stops = np.full((rows, MAX_STOPS), NO_TOKEN, np.int32)
        self.min_length = np.zeros(rows, np.int32)  # below it no stop token may be drawn

    def enter(self, sequence: Sequence, pages: list[int], num_computed: int, waits: bool) -> int:
        """Gives the sequence a free slot."""
        slot = self.free.pop()
        self.holder[slot], sequence.slot = sequence, slot
        self.length[slot], self.computed[slot], self.limit[slot] = sequence.num_known, num_computed, sequence.limit
        self.num_prompt[slot], self.num_pages[slot] = sequence.num_prompt, len(pages)
        self.table[slot] = NULL_PAGE
        self.table[slot, : len(pages)] = pages
        self.level[slot], self.purpose[slot] = sequence.level, sequence.purpose
        self.waits[slot], self.held[slot], self.fresh[slot] = waits, False, True
        self.wants_logprobs[slot] = sequence.request.sampling.num_logprobs is not None
        self._set_controls(slot, sequence)
        return slot

    def leave(self, sequence: Sequence) -> list[int]:
        """Frees its slot; returns the pages it had."""
        slot = sequence.slot
        assert slot is not None
        self.holder[slot], sequence.slot = None, None
        self.free.append(slot)
        return self.pages(slot)

    def pages(self, slot: int) -> list[int]:
        pages: list[int] = self.table[slot, : self.num_pages[slot]].tolist()
        return pages

    def append_pages(self, slot: int, pages: list[int]) -> None:
        count = int(self.num_pages[slot])
        self.table[slot, count : count + len(pages)] = pages
        self.num_pages[slot] = count + len(pages)

    def _set_controls(self, slot: int, sequence: Sequence) -> None:
        sampling = sequence.request.sampling
        self.seed[slot], self.temperature[slot] = sampling.seed, sampling.temperature
        self.top_k[slot] = self.vocab_size if sampling.top_k is None else min(sampling.top_k, self.vocab_size)
        self.top_p[slot] = 1.0 if sampling.top_p is None else sampling.top_p
        self.min_p[slot] = 0.0 if sampling.min_p is None else sampling.min_p
        self.penalties[slot] = sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty
        self.stops[slot] = NO_TOKEN
        self.stops[slot, : len(sampling.stop_token_ids)] = sampling.stop_token_ids
        self.min_length[slot] = sequence.num_prompt + sampling.min_tokens


def pages_for(num_tokens: Any) -> Any:
    """Pages that hold this many tokens; whole numbers or arrays of them."""
    return -(-num_tokens // PAGE_TOKENS)
