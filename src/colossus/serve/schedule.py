"""What the next step computes: one budget of tokens, spent first on the requests that run, then on those that wait.

Every request just catches up with its length: one that decodes is one token behind, one that is new is its whole prompt behind, or
what the cache does not have of it. Where pages run out, the last in the policy's order gives its own back and waits again; its
tokens are kept and computed anew later. The first in the order is never preempted, so that the engine as a whole gets on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from colossus.nn.paged import PAGE_TOKENS
from colossus.policy.batching import BatchingState, Order, ranking, served_after_arrival, step_budget
from colossus.serve.blocks import PagePool, extend_keys
from colossus.serve.sequence import Level, Purpose, Sequence, Slots, pages_for

_FUSED_S, _MAX_FUSED_S = 0.01, 0.05  # of fused steps: a new request waits for them, and an answer's tokens come together
_DELIVERIES_PER_S = 800  # of all rows: each costs the door and its client time that the engine has not where they share its cores
_WASTE_FRACTION = 0.125  # of fused steps, for rows that end inside
_SCORE_STEP_TOKENS = 128  # of prompts whose every position needs the whole vocabulary


@dataclass(kw_only=True, slots=True)
class Plan:
    """One step: rows of it by slot, and how many tokens each computes, from ``computed`` on.

    :param draws: whether the row's last token is followed by one that the step draws.
    :param num_steps: of decoding, fused into one program.
    :param drafts: guessed tokens of each row, where any row has some.
    """

    purpose: Purpose
    slots: np.ndarray
    counts: np.ndarray
    computed: np.ndarray
    draws: np.ndarray
    sequences: list[Sequence] = field(default_factory=list)
    num_steps: int = 1
    drafts: list[list[int]] | None = None

    @property
    def decodes(self) -> bool:
        """Whether each row computes one token."""
        return self.purpose is Purpose.ANSWER and self.drafts is None and int(self.counts.max()) == 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a scheduler may do."""

    max_step_tokens: int
    max_fused_steps: int
    num_draft_tokens: int
    prefix_caching: bool
    order: Order


class Scheduler:
    """The requests of an engine, waiting and running."""

    def __init__(self, pool: PagePool, slots: Slots, limits: Limits) -> None:
        self.pool, self.slots, self.limits = pool, slots, limits
        self.waiting: list[Sequence] = []
        self.rows = np.zeros(0, np.int32)  # slots that run, in the order they were taken
        self._entered: list[Sequence] = []
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.served_tokens: dict[str, float] = {}
        self.mean_answer_tokens: float | None = None
        self._last_purpose = Purpose.ANSWER
        self._is_full = False  # who waits has a slot but no pages
        self._budget = limits.max_step_tokens  # of the step that is planned

    def add(self, sequence: Sequence) -> None:
        if self.limits.order is Order.FAIR:
            owner, active = sequence.request.owner, {other.request.owner for other in self._all()}
            if owner not in active:
                self.served_tokens[owner] = served_after_arrival(self.served_tokens, active, owner)
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It ended, wherever it was."""
        sequence.ended = True
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            self._leave(sequence)

    def take_entered(self) -> list[Sequence]:
        """Who got a slot since this was asked last."""
        entered, self._entered = self._entered, []
        return entered

    def extended(self, sequence: Sequence, drawn: list[int]) -> None:
        """Tokens came back from the device; the sequence goes on."""
        if sequence.drafter is not None:
            sequence.drafter.extend(drawn)
        slot = sequence.slot
        if slot is None:
            return
        self.slots.held[slot] = False
        if self.slots.waits[slot]:  # nothing else of it is on its way
            self.slots.length[slot] = sequence.num_known
            self.slots.computed[slot] = sequence.num_known - 1
        if sequence.num_known // PAGE_TOKENS > sequence.num_remembered:
            self.remember(sequence)

    def forget_keys(self) -> None:
        """The pool forgot its keys; sequences tell it only of pages that they fill from now on."""
        for sequence in self._all():
            sequence.keys.clear()

    def learn_answer(self, sequence: Sequence) -> None:
        """How long an answer became, for the estimates of others."""
        if sequence.limit == sequence.num_prompt:  # none was asked for
            return
        length = sequence.num_known - sequence.num_prompt
        mean = self.mean_answer_tokens
        self.mean_answer_tokens = length if mean is None else 0.95 * mean + 0.05 * length

    def plan(self, step_s: float | None, token_s: float | None = None) -> Plan | None:
        """The next step; None where nothing can be computed now.

        :param step_s, token_s: what a step of decoding takes, and each token of a step that reads prompts, where that is known.
        """
        self._grow()
        length, rows = self.slots.length, self.rows
        num_decoding = int(np.count_nonzero((length[rows] - self.slots.computed[rows] == 1) & (length[rows] < self.slots.limit[rows])))
        self._budget = step_budget(self.limits.max_step_tokens, num_decoding=num_decoding, token_s=token_s)
        self._admit()
        plan = self._choose()
        if plan is None:
            return None
        plan.sequences = [holder for slot in plan.slots.tolist() if (holder := self.slots.holder[slot]) is not None]
        if plan.purpose is Purpose.ANSWER and self.limits.num_draft_tokens:
            self._guess(plan)
        if plan.decodes:
            plan.num_steps = self._fused_steps(plan, step_s)
        return plan

    def dispatched(self, plan: Plan) -> None:
        """The plan is on its way to the device."""
        slots, rows = self.slots, plan.slots
        slots.held[rows] = slots.waits[rows] & plan.draws
        slots.fresh[rows[plan.draws]] = plan.drafts is not None
        if plan.drafts is None:
            slots.computed[rows] += plan.counts * plan.num_steps
            slots.length[rows] += np.where(plan.draws, plan.num_steps, 0).astype(np.int32)
            np.minimum(slots.length, slots.limit, out=slots.length)
        else:
            slots.computed[rows] += np.where(plan.draws, 0, plan.counts).astype(np.int32)
        for sequence in plan.sequences:
            sequence.num_flights += 1
        if plan.purpose is Purpose.SCORE:
            self._go_on_to_answer(plan)
        if self.limits.prefix_caching and not (plan.decodes and plan.draws.all()):
            for sequence in plan.sequences:
                self.remember(sequence)
        self._count_served(plan)

    def remember(self, sequence: Sequence) -> None:
        """Tells the pool of pages that are full, known and computed."""
        if sequence.slot is None or not self.limits.prefix_caching:
            return
        num_full = min(int(self.slots.computed[sequence.slot]), sequence.num_known) // PAGE_TOKENS
        if num_full > sequence.num_remembered:
            extend_keys(sequence.keys, sequence.known, sequence.request.cache_salt)
            for page in range(sequence.num_remembered, num_full):
                self.pool.remember(int(self.slots.table[sequence.slot, page]), sequence.keys[page])
            sequence.num_remembered = num_full

    def _go_on_to_answer(self, plan: Plan) -> None:
        for sequence in plan.sequences:
            if sequence.slot is not None and self.slots.computed[sequence.slot] == sequence.num_known - 1:
                sequence.purpose = Purpose.ANSWER
                self.slots.purpose[sequence.slot] = Purpose.ANSWER

    def _all(self) -> list[Sequence]:
        return self.waiting + [holder for holder in self.slots.holder if holder is not None]

    def _leave(self, sequence: Sequence) -> None:
        self.rows = self.rows[self.rows != sequence.slot]
        self.pool.release(self.slots.leave(sequence))

    def _grow(self) -> None:
        """A page more for each decoding row whose pages are full, at the cost of the last in the order."""
        slots = self.slots
        lacking = (slots.computed[self.rows] >= slots.num_pages[self.rows] * PAGE_TOKENS) & (slots.length[self.rows] < slots.limit[self.rows])
        if not lacking.any():
            return
        for sequence in [slots.holder[slot] for slot in self.rows[lacking].tolist()]:
            assert sequence is not None
            while sequence.slot is not None and self.pool.num_free == 0:
                self._preempt_last()
            if sequence.slot is not None:
                slots.append_pages(sequence.slot, self.pool.take(1))

    def _preempt_last(self) -> None:
        running = [holder for slot in self.rows.tolist() if (holder := self.slots.holder[slot]) is not None]
        victim = running[ranking(self._state(running))[-1]]
        self._leave(victim)
        victim.num_preemptions += 1
        victim.num_remembered = 0
        if victim.purpose is not Purpose.ANSWER:
            victim.hidden_sum, victim.scores = None, []
        self.waiting.append(victim)
        self.num_preemptions += 1

    def _state(self, sequences: list[Sequence]) -> BatchingState:
        candidates = tuple(sequence.candidate() for sequence in sequences)
        return BatchingState(
            order=self.limits.order, candidates=candidates, now_s=time.time(), served_tokens=self.served_tokens, mean_answer_tokens=self.mean_answer_tokens
        )

    def _admit(self) -> None:
        """Takes waiting requests while there is a slot, budget in this step, and room for all their tokens."""
        self._is_full = False
        if not self.waiting or not self.slots.free:
            return
        budget = self._budget - int(np.sum(self.slots.length[self.rows] - self.slots.computed[self.rows]))
        able = [sequence for sequence in self.waiting if sequence.num_flights == 0] if budget > 0 else []
        for place in ranking(self._state(able)) if able else ():
            sequence = able[place]
            hits = self._hits(sequence)
            if self._awaits_page(sequence, len(hits)):
                continue
            if not self._has_room(sequence, hits):
                self._is_full = True
                return
            budget -= self._enter(sequence, hits)
            if budget <= 0 or not self.slots.free:
                return

    def _hits(self, sequence: Sequence) -> list[bytes]:
        """Keys of the pages that the cache has of it; its last token is computed in any case."""
        if not self.limits.prefix_caching:
            return []
        extend_keys(sequence.keys, sequence.known, sequence.request.cache_salt)
        if not sequence.wants_cache:
            return []
        usable = sequence.keys[: (sequence.num_known - 1) // PAGE_TOKENS]
        return usable[: self.pool.count_known(usable)]

    def _awaits_page(self, sequence: Sequence, num_hits: int) -> bool:
        """Whether a running request is about to compute the next page that this one needs: better to wait than to compute it twice."""
        if not sequence.wants_cache or num_hits >= (sequence.num_known - 1) // PAGE_TOKENS or not self.limits.prefix_caching:
            return False
        wanted = sequence.keys[num_hits]
        behind = self.rows[self.slots.length[self.rows] - self.slots.computed[self.rows] > 1].tolist()
        runners = [holder for slot in behind if (holder := self.slots.holder[slot]) is not None]
        return any(len(other.keys) > num_hits and other.keys[num_hits] == wanted and other.num_remembered <= num_hits for other in runners)

    def _has_room(self, sequence: Sequence, hits: list[bytes]) -> bool:
        """For all its tokens now; and a page for each that runs, so that it is not preempted at once."""
        needed = pages_for(sequence.num_known) - len(hits) + self.pool.count_known_free(hits)
        return self.pool.num_free >= needed + len(self.rows)

    def _enter(self, sequence: Sequence, hits: list[bytes]) -> int:
        """Returns how many tokens it is behind."""
        pages = self.pool.share(hits)
        pages += self.pool.take(pages_for(sequence.num_known) - len(pages))
        num_cached = len(hits) * PAGE_TOKENS
        sequence.num_remembered = len(hits)
        if sequence.num_cached is None:
            sequence.num_cached = min(num_cached, sequence.num_prompt)
            self.num_cached_tokens += sequence.num_cached
        waits = sequence.matcher is not None or self.limits.num_draft_tokens > 0
        slot = self.slots.enter(sequence, pages, num_cached, waits)
        self.rows = np.append(self.rows, np.int32(slot))
        self.waiting.remove(sequence)
        self._entered.append(sequence)
        return sequence.num_known - num_cached

    def _choose(self) -> Plan | None:
        """Rows of one purpose; purposes take turns."""
        if not self.slots.purpose[self.rows].any():
            return self._rows_of(Purpose.ANSWER)
        for turn in range(1, len(Purpose) + 1):
            purpose = Purpose((self._last_purpose + turn) % len(Purpose))
            plan = self._rows_of(purpose)
            if plan is not None:
                self._last_purpose = purpose
                return plan
        return None

    def _rows_of(self, purpose: Purpose) -> Plan | None:
        slots, rows = self.slots, self.rows
        rows = rows[(slots.purpose[rows] == purpose) & ~slots.held[rows]]
        wanted = slots.length[rows] < slots.limit[rows] if purpose is Purpose.ANSWER else True
        # The last token of a prompt that is scored is left to the step that draws.
        behind = slots.length[rows] - slots.computed[rows] - (purpose is Purpose.SCORE)
        rows, behind = rows[(behind > 0) & wanted], behind[(behind > 0) & wanted]
        if not len(rows):
            return None
        budget = min(self._budget, _SCORE_STEP_TOKENS) if purpose is Purpose.SCORE else self._budget
        if len(rows) > 1 and behind.max() > 1:
            decoding_first = np.argsort(behind > 1, kind="stable")
            rows, behind = rows[decoding_first], behind[decoding_first]
        before = np.cumsum(behind) - behind
        counts = np.clip(budget - before, 0, behind).astype(np.int32)
        rows, behind, counts = rows[counts > 0], behind[counts > 0], counts[counts > 0]
        draws = (counts == behind) & (purpose is Purpose.ANSWER)
        return Plan(purpose=purpose, slots=rows, counts=counts, computed=slots.computed[rows], draws=draws)

    def _guess(self, plan: Plan) -> None:
        """Guessed tokens behind the rows that decode, where the step's budget and free pages allow."""
        slots = self.slots
        if slots.level[plan.slots].max() > Level.PLAIN:
            return
        reads_prompts = bool(plan.counts.max() > 1)
        room = (self._budget if reads_prompts else self.limits.max_step_tokens) - int(plan.counts.sum())
        drafts: list[list[int]] = []
        for row, sequence in enumerate(plan.sequences):
            guess: list[int] = []
            if plan.draws[row] and sequence.drafter is not None:
                guess = sequence.drafter.guess(min(self.limits.num_draft_tokens, room, sequence.limit - sequence.num_known - 1))
                guess = guess[: self._reserve(int(plan.slots[row]), sequence.num_known + len(guess)) - sequence.num_known]
            room -= len(guess)
            drafts.append(guess)
        if any(drafts):
            plan.drafts = drafts
            plan.counts = plan.counts + np.asarray([len(guess) for guess in drafts], np.int32)

    def _reserve(self, slot: int, num_tokens: int) -> int:
        """Pages for this many tokens as far as there are free ones; returns how many tokens fit."""
        lacking = pages_for(num_tokens) - int(self.slots.num_pages[slot])
        if lacking > 0:
            self.slots.append_pages(slot, self.pool.take(min(lacking, self.pool.num_free)))
        return min(num_tokens, int(self.slots.num_pages[slot]) * PAGE_TOKENS)

    def _fused_steps(self, plan: Plan, step_s: float | None) -> int:
        """Steps of decoding in one program: as many as are over soon, are not in anybody's way, and are hardly wasted."""
        slots, rows = self.slots, plan.slots
        if step_s is None or not plan.draws.all() or self._is_wanted(plan):
            return 1
        left = slots.limit[rows] - slots.length[rows]
        most_s = min(max(_FUSED_S, len(rows) / _DELIVERIES_PER_S), _MAX_FUSED_S)
        num_steps = 1
        while 2 * num_steps <= self.limits.max_fused_steps and 2 * num_steps * step_s <= most_s:
            if np.maximum(2 * num_steps - left, 0).sum() > _WASTE_FRACTION * 2 * num_steps * len(rows):
                break
            num_steps *= 2
        while num_steps > 1:
            ends = np.minimum(plan.computed + num_steps, slots.limit[rows])
            lacking = pages_for(ends) - slots.num_pages[rows]
            if np.maximum(lacking, 0).sum() <= self.pool.num_free:
                for slot, end in zip(rows[lacking > 0].tolist(), ends[lacking > 0].tolist(), strict=True):
                    self._reserve(slot, end)
                return num_steps
            num_steps //= 2
        return num_steps

    def _is_wanted(self, plan: Plan) -> bool:
        """Whether somebody needs the host or the device before several steps are over."""
        slots, rows = self.slots, self.rows
        can_enter = bool(self.waiting) and bool(self.slots.free) and not self._is_full
        num_going = int(np.count_nonzero((slots.length[rows] < slots.limit[rows]) | (slots.purpose[rows] != Purpose.ANSWER)))
        return can_enter or num_going > len(plan.slots) or bool(slots.level[plan.slots].max() > Level.PLAIN)

    def _count_served(self, plan: Plan) -> None:
        if self.limits.order is Order.FAIR:
            for sequence, count in zip(plan.sequences, plan.counts.tolist(), strict=True):
                owner = sequence.request.owner
                self.served_tokens[owner] = self.served_tokens.get(owner, 0.0) + count * plan.num_steps
