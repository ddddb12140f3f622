"""The engine: requests in, tokens out, with one step always on its way to the device while the host deals with the one before."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import numpy as np
import psutil

from colossus.nn import target
from colossus.nn.paged import PAGE_TOKENS, PagedDecoder, make_decoder, page_bytes, tp_mesh
from colossus.nn.parameters import Params
from colossus.policy.batching import MIN_STEP_TOKENS, order_named
from colossus.serve import compiling
from colossus.serve.backend import EngineInfo
from colossus.serve.batch import pack
from colossus.serve.blocks import PagePool
from colossus.serve.gang import Gang
from colossus.serve.intake import Intake, Refused
from colossus.serve.options import EngineOptions
from colossus.serve.programs import MAX_FUSED_STEPS, Programs
from colossus.serve.request import EngineStats, Finish, Output, Request
from colossus.serve.results import Flight, LogprobTable, answer, embedding, failure
from colossus.serve.schedule import Limits, Plan, Scheduler
from colossus.serve.sequence import Level, Purpose, Sequence, Slots, pages_for
from colossus.serve.shapes import Shapes
from colossus.spec.errors import InfeasibleError, Problem, SpecError
from colossus.spec.model import ModelCard

_NEW_SHARE = 0.2  # of the newest measurement in a step's mean time


class EngineModel(Protocol):
    """What an engine needs of a model; ``serve.model.ServedModel`` is one."""

    @property
    def name(self) -> str: ...
    @property
    def card(self) -> ModelCard: ...
    def load_params(self) -> Params: ...


@dataclass(kw_only=True, slots=True)
class _Counts:
    """Since the start."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    busy_s: float = 0.0


class Engine:
    """One model on one machine. Call ``warm_up`` first, then ``step`` for as long as it ``has_work``. Not for several threads."""

    def __init__(self, model: EngineModel, options: EngineOptions) -> None:
        self._start_s = time.time()
        _check(options)
        gang = Gang(options) if options.processes > 1 else None
        self._model, self._options = model, options
        card = model.card
        self._decoder = make_decoder(model.load_params(), card, weights=options.weights, cache=options.cache, mesh=tp_mesh(card, options.tp))
        self._num_pages, self._max_sequence_tokens = _sizes(card, options)
        self._pool = PagePool(self._num_pages)
        max_pages = int(pages_for(self._max_sequence_tokens + options.max_fused_steps))
        self._slots = Slots(options.max_running, max_pages, card.vocab_size)
        self._shapes = _shapes(self._decoder, options, max_pages)
        own = Programs(self._decoder, num_pages=self._num_pages, num_slots=options.max_running)
        self._programs = own if gang is None else gang.leading(own, num_pages=self._num_pages, num_slots=options.max_running)
        self._scheduler = Scheduler(self._pool, self._slots, _limits(options))
        self._intake = Intake(model, options, self._max_sequence_tokens)
        self._sequences: dict[str, Sequence] = {}
        self._ready: list[Output] = []  # outputs that no step brings: errors, aborted requests
        self._flight: Flight | None = None
        self._counts = _Counts()
        self._step_s: dict[int, float] = {}  # of decoding, by number of rows (to a power of two)
        self._token_s: float | None = None  # of steps that read prompts
        self._last_read_s = 0.0
        self._num_compiled_before = compiling.num_compiled()
        self._ready_s = 0.0

    def warm_up(self, progress: Callable[[str], None]) -> None:
        """Compiles all programs; after it nothing is compiled any more."""
        keys = self._shapes.keys
        self._programs.compile(keys, lambda number, key: progress(f"compiled {number + 1} of {len(keys)}: {key}"))
        self._num_compiled_before = compiling.num_compiled()
        self._ready_s = time.time() - self._start_s

    def info(self) -> EngineInfo:
        return EngineInfo(
            model=self._model.name,
            max_sequence_tokens=self._max_sequence_tokens,
            vocab_size=self._model.card.vocab_size,
            num_pages=self._pool.num_pages,
            page_tokens=PAGE_TOKENS,
            weights=str(self._options.weights),
            cache=str(self._options.cache),
            cache_bytes=self._pool.num_pages * page_bytes(self._model.card, str(self._options.cache)),
            device=jax.devices()[0].device_kind,
            start_s=self._ready_s,
            num_programs=self._programs.num_compiled,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._ready or self._flight)

    def add(self, request: Request) -> None:
        """Takes a request; what is wrong with it becomes its output."""
        try:
            if request.id in self._sequences:
                raise Refused(f"a request with id {request.id} is being served already")
            sequence = self._intake.sequence(request)
        except Refused as error:
            self._ready.append(failure(request.id, str(error)))
            return
        self._sequences[request.id] = sequence
        self._scheduler.add(sequence)
        if sequence.limit == sequence.num_prompt and sequence.purpose is Purpose.ANSWER:  # nothing to draw, nothing to compute
            self._ready.append(self._end(sequence, [], Finish.LENGTH, None))

    def abort(self, request_id: str) -> None:
        """Ends a request now; what is on its way for it is dropped. Unknown ids are those that ended by themselves meanwhile."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._ready.append(self._end(sequence, [], Finish.ABORT, None))

    def reset_prefix_cache(self) -> None:
        """What was computed before is not shared any more."""
        self._pool.forget_all()
        self._scheduler.forget_keys()

    def step(self) -> list[Output]:
        """Dispatches a step, and returns what the one before it brought. Where no request can go on before that is known, it is read first."""
        began_s = time.perf_counter()
        outputs, self._ready = self._ready, []
        before, self._flight = self._flight, self._dispatch()
        if before is not None:
            outputs += self._read(before)
            if self._flight is None:
                self._flight = self._dispatch()
        self._counts.busy_s += time.perf_counter() - began_s
        return outputs

    def stats(self) -> EngineStats:
        counts, scheduler = self._counts, self._scheduler
        return EngineStats(
            time_s=time.time(),
            num_running=len(scheduler.rows),
            num_waiting=len(scheduler.waiting),
            num_pages=self._pool.num_pages,
            num_used_pages=self._pool.num_used,
            num_cached_pages=self._pool.num_cached,
            num_steps=counts.num_steps,
            num_prompt_tokens=counts.num_prompt_tokens,
            num_cached_tokens=scheduler.num_cached_tokens,
            num_output_tokens=counts.num_output_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_drafted_tokens=counts.num_drafted_tokens,
            num_accepted_tokens=counts.num_accepted_tokens,
            num_compilations=compiling.num_compiled() - self._num_compiled_before,
            busy_s=counts.busy_s,
        )

    def _dispatch(self) -> Flight | None:
        scheduler = self._scheduler
        plan = scheduler.plan(self._step_s.get(len(scheduler.rows).bit_length()), self._token_s)
        for sequence in scheduler.take_entered():
            if sequence.level >= Level.EDITED and sequence.slot is not None:
                answer_so_far = sequence.tokens[sequence.num_prompt : sequence.num_known]
                self._programs.enter(sequence.slot, sequence.tokens[: sequence.num_prompt], answer_so_far, dict(sequence.request.sampling.logit_bias))
        if plan is None:
            return None
        packed = pack(plan, self._slots, self._shapes)
        dispatched_s = time.perf_counter()
        outputs = self._programs.run(*packed)
        self._count(plan)
        scheduler.dispatched(plan)
        num_preemptions = [sequence.num_preemptions for sequence in plan.sequences]
        return Flight(plan=plan, key=packed.key, outputs=outputs, num_preemptions=num_preemptions, dispatched_s=dispatched_s)

    def _count(self, plan: Plan) -> None:
        self._counts.num_steps += plan.num_steps
        unread = self._slots.num_prompt[plan.slots] - plan.computed
        if (unread > 0).any():
            self._counts.num_prompt_tokens += int(np.minimum(np.maximum(unread, 0), plan.counts).sum())

    def _read(self, flight: Flight) -> list[Output]:
        """Waits for a step and gives its results to their requests."""
        plan = flight.plan
        for sequence in plan.sequences:
            sequence.num_flights -= 1
        if plan.purpose is not Purpose.ANSWER:
            outputs = self._read_scores(flight) if plan.purpose is Purpose.SCORE else self._read_embeddings(flight)
            self._last_read_s = time.perf_counter()
            return outputs
        drawn = flight.drawn()
        self._measure(flight)
        table = None if flight.outputs.logprobs is None else LogprobTable(flight.outputs.logprobs)
        outputs = list[Output]()
        for row, (sequence, draws) in enumerate(zip(plan.sequences, plan.draws.tolist(), strict=True)):
            if draws and not sequence.ended:
                if plan.drafts is not None:
                    self._check_guess(sequence, plan.drafts[row], drawn[row])
                outputs.append(self._extend(sequence, drawn[row], table, row))
        return outputs

    def _measure(self, flight: Flight) -> None:
        """What a step took: of decoding by rows; of reading prompts by tokens, where there are enough of them and padding takes no time."""
        now_s, plan = time.perf_counter(), flight.plan
        taken_s = now_s - max(self._last_read_s, flight.dispatched_s)
        if plan.decodes:
            size = len(plan.slots).bit_length()
            self._step_s[size] = _mean(self._step_s.get(size), taken_s / plan.num_steps)
        elif self._shapes.ragged and plan.drafts is None and plan.counts[plan.counts > 1].sum() >= MIN_STEP_TOKENS // 2:
            self._token_s = _mean(self._token_s, taken_s / int(plan.counts.sum()))
        self._last_read_s = now_s

    def _check_guess(self, sequence: Sequence, guess: list[int], drawn: list[int]) -> None:
        if guess:
            num_accepted = len(drawn) - 1
            self._counts.num_drafted_tokens += len(guess)
            self._counts.num_accepted_tokens += num_accepted
            assert sequence.drafter is not None
            sequence.drafter.learn(len(guess), num_accepted)

    def _extend(self, sequence: Sequence, drawn: list[int], table: LogprobTable | None, row: int) -> Output:
        """Drawn tokens become part of the answer, up to a stop token or the limit."""
        drawn, finish = self._cut(sequence, drawn)
        known = sequence.num_known
        sequence.tokens[known : known + len(drawn)] = drawn
        sequence.num_known = known + len(drawn)
        self._counts.num_output_tokens += len(drawn)
        logprobs = self._logprobs(sequence, drawn, table, row)
        if finish is not None:
            return self._end(sequence, drawn, finish, logprobs)
        self._scheduler.extended(sequence, drawn)
        return answer(sequence, drawn, None, logprobs)

    def _cut(self, sequence: Sequence, drawn: list[int]) -> tuple[list[int], Finish | None]:
        """The part of what was drawn that counts, and whether the answer ends with it."""
        room = sequence.limit - sequence.num_known
        for place, token in enumerate(drawn[:room]):
            if token in sequence.stops:
                return drawn[: place + 1], Finish.STOP
            if sequence.matcher is not None:
                sequence.matcher.accept(token)
                if sequence.matcher.error is not None:
                    return drawn[:place], Finish.ERROR
                if sequence.matcher.is_done:
                    return drawn[: place + 1], Finish.STOP
        return drawn[:room], Finish.LENGTH if len(drawn) >= room else None

    def _logprobs(self, sequence: Sequence, tokens: list[int], table: LogprobTable | None, row: int) -> Any:
        num_top = sequence.request.sampling.num_logprobs
        if num_top is None or table is None:
            return None
        return tuple(table.entry(row, token, num_top) for token in tokens)

    def _read_scores(self, flight: Flight) -> list[Output]:
        assert flight.outputs.logprobs is not None
        table, outputs, start = LogprobTable(flight.outputs.logprobs), [], 0
        plan = flight.plan
        for row, sequence in enumerate(plan.sequences):
            first, count = int(plan.computed[row]), int(plan.counts[row])
            void = sequence.purpose is Purpose.SCORE and sequence.num_preemptions != flight.num_preemptions[row]
            if not (sequence.ended or void):
                num_top = sequence.request.sampling.num_prompt_logprobs or 0
                tokens = sequence.tokens[first + 1 : first + 1 + count].tolist()
                sequence.scores += [table.entry(start + place, token, num_top) for place, token in enumerate(tokens)]
                if len(sequence.scores) == sequence.num_prompt - 1 and sequence.limit == sequence.num_prompt:
                    outputs.append(self._end(sequence, [], Finish.LENGTH, None))
            start += count
        return outputs

    def _read_embeddings(self, flight: Flight) -> list[Output]:
        assert flight.outputs.hidden_rd is not None
        plan, sums_rd, outputs = flight.plan, jax.device_get(flight.outputs.hidden_rd), []
        for row, sequence in enumerate(plan.sequences):
            if sequence.ended or sequence.num_preemptions != flight.num_preemptions[row]:
                continue
            sequence.hidden_sum = sums_rd[row] + (0 if sequence.hidden_sum is None else sequence.hidden_sum)
            if plan.computed[row] + plan.counts[row] == sequence.num_prompt:
                outputs.append(embedding(sequence))
                self._end(sequence, [], Finish.STOP, None)
        return outputs

    def _end(self, sequence: Sequence, tokens: list[int], finish: Finish, logprobs: Any) -> Output:
        self._scheduler.remember(sequence)
        self._scheduler.remove(sequence)
        del self._sequences[sequence.request.id]
        if finish is not Finish.ABORT:
            self._scheduler.learn_answer(sequence)
        output = answer(sequence, tokens, finish, logprobs)
        if finish is Finish.ERROR:
            return replace(output, error=f"the grammar could not be followed: {sequence.matcher.error}")
        return output


def _mean(mean: float | None, new: float) -> float:
    """Over the last few."""
    return new if mean is None else mean + _NEW_SHARE * (new - mean)


def _check(options: EngineOptions) -> None:
    rules = [
        ("max_running", options.max_running, options.max_running >= 1, "must be 1 or more"),
        ("max_step_tokens", options.max_step_tokens, options.max_step_tokens >= options.max_running, f"must be at least max_running = {options.max_running}"),
        ("max_fused_steps", options.max_fused_steps, 1 <= options.max_fused_steps <= MAX_FUSED_STEPS, f"must be from 1 to {MAX_FUSED_STEPS}"),
        ("num_draft_tokens", options.num_draft_tokens, 0 <= options.num_draft_tokens <= 16, "must be from 0 to 16"),
    ]
    problems = [Problem(path=name, value=str(value), rule=rule) for name, value, good, rule in rules if not good]
    if problems:
        raise SpecError("engine options", problems)


def _limits(options: EngineOptions) -> Limits:
    return Limits(
        max_step_tokens=options.max_step_tokens,
        max_fused_steps=options.max_fused_steps,
        num_draft_tokens=options.num_draft_tokens,
        prefix_caching=options.prefix_caching,
        order=order_named(options.policy),
    )


def _shapes(decoder: PagedDecoder, options: EngineOptions, max_pages: int) -> Shapes:
    return Shapes(
        max_rows=options.max_running,
        max_tokens=options.max_step_tokens,
        max_pages=max_pages,
        num_drafts=options.num_draft_tokens,
        ragged=getattr(decoder, "ragged", False),
    )


def _sizes(card: ModelCard, options: EngineOptions) -> tuple[int, int]:
    """Pages of the cache, nobody's included, and tokens that one sequence may have."""
    wanted = min(card.max_sequence_tokens, options.max_sequence_tokens or card.max_sequence_tokens)
    each_bytes = page_bytes(card, str(options.cache))
    given_bytes = _spare_bytes(options.host_memory_bytes) if options.kv_bytes is None else options.kv_bytes
    num_pages = given_bytes // each_bytes
    if options.kv_bytes is None:
        num_pages = min(options.max_running * int(pages_for(wanted)) + 1, _rounded(num_pages))
    if num_pages < 2:
        least, whole = (_gib((1 + count) * each_bytes) for count in (1, int(pages_for(wanted))))
        words = f"the cache needs at least {least} GiB, and {whole} GiB for one sequence of {wanted:,} tokens; it may have {given_bytes:,} bytes"
        raise InfeasibleError(words, hint=f"--kv-gib {whole} or more, a smaller --max-sequence-tokens, or --cache int8")
    return num_pages, min(wanted, (num_pages - 1) * PAGE_TOKENS)


def _gib(num_bytes: int) -> str:
    """Rounded up to three digits, so that what is said suffices."""
    size = num_bytes / 2**30
    unit = 10.0 ** (math.floor(math.log10(size)) - 2)
    return f"{math.ceil(size / unit) * unit:.3g}"


def _rounded(num_pages: int) -> int:
    """Down to a power of two: free memory differs from start to start, and programs are kept for one number of pages."""
    return 1 << num_pages.bit_length() - 1 if num_pages else 0


def _spare_bytes(host_memory_bytes: int | None) -> int:
    """What a cache may take unasked: of a machine that is there for other things too an eighth of what is free, of an accelerator half."""
    if target.platform() == "cpu":
        free_bytes = int(psutil.virtual_memory().available)
        if host_memory_bytes is not None:
            free_bytes = min(free_bytes, max(0, host_memory_bytes - int(psutil.Process().memory_info().rss)))
        return free_bytes // 8
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)) // 2
