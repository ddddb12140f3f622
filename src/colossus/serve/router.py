"""The backend of the API over several engines: gives each request to one, brings its outputs back, and goes on where engines are lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from colossus.policy.routing import EngineState, LossState, RoutingState, choose, retry
from colossus.serve.affinity import Known, prefix_hashes
from colossus.serve.backend import EngineInfo, Overloaded, Unavailable
from colossus.serve.calls import current_call
from colossus.serve.flight import Flight
from colossus.serve.measures import Measures
from colossus.serve.replicas import Fleet, Loss, Replica
from colossus.serve.request import EngineStats, Finish, Output, Request
from colossus.serve.settings import RouterSettings
from colossus.serve.speeds import Speeds

_STARTING = "the engines are still starting"


@dataclass(kw_only=True)
class _Book:
    """What was given to one replica."""

    flights: dict[str, Flight] = field(default_factory=dict)
    num_tokens: int = 0
    num_unread_tokens: int = 0  # of prompts whose first token has not come
    known: Known = field(default_factory=Known)
    suspect: Flight | None = None  # one whose last engine crashed; two of them on one engine could not be told apart


class Router:
    """``Backend`` over a ``Fleet``; its listener."""

    def __init__(self, fleet: Fleet, settings: RouterSettings, measures: Measures) -> None:
        self._fleet = fleet
        self._settings = settings
        self._measures = measures
        self._books = [_Book() for _ in fleet.replicas]
        self._flights: dict[str, Flight] = {}
        self._parked: dict[str, Flight] = {}  # no engine may have them now; in order of arrival
        self._info: EngineInfo | None = None
        self._speeds = Speeds(settings, measures)
        self._closed: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise Unavailable(self._fleet.failure or _STARTING)
        return self._info

    @property
    def is_ready(self) -> bool:
        """Whether a request would be given to an engine at once."""
        return self._closed is None and bool(self._fleet.ready)

    @property
    def is_closed(self) -> bool:
        return self._closed is not None

    @property
    def num_requests(self) -> int:
        return len(self._flights)

    @property
    def num_calls(self) -> int:
        """HTTP requests under way, however many answers each of them wants."""
        return len({id(flight.call or flight) for flight in self._flights.values()})

    @property
    def num_outstanding_tokens(self) -> int:
        return sum(book.num_tokens for book in self._books)

    @property
    def num_parked(self) -> int:
        return len(self._parked)

    def outstanding_tokens(self, replica: Replica) -> int:
        """Estimated work that a replica was given and has not done."""
        return self._books[replica.index].num_tokens

    def stats(self) -> Sequence[EngineStats]:
        return [replica.stats for replica in self._fleet.ready if replica.stats is not None]

    async def submit(self, request: Request) -> AsyncIterator[Output]:
        """See ``Backend.submit``."""
        flight = self._admit(request)
        try:
            self._place(flight)
            while True:
                output = await flight.next()
                yield output
                if output.finish is not None:
                    return
        finally:
            self._leave(flight)

    def close(self, words: str) -> None:
        """Takes no more requests; those it has go on."""
        self._closed = words

    async def wait_idle(self) -> None:
        """Until no request is under way."""
        await self._idle.wait()

    def end_all(self, words: str) -> None:
        """Ends every request with an error."""
        for flight in list(self._flights.values()):
            self._abort(flight)
            self._turn_away(flight, words)

    def reset_prefix_cache(self) -> None:
        """Engines forget what no request holds."""
        for replica in self._fleet.ready:
            self._books[replica.index].known.forget()
            replica.send({"kind": "reset_prefix_cache"})

    # Requests in and out

    def _admit(self, request: Request) -> Flight:
        """Asks admission. Raises BackendError for a request that is not taken."""
        if self._closed is not None:
            raise Unavailable(self._closed)
        if self._fleet.failure is not None or self._info is None:
            raise Unavailable(self._fleet.failure or _STARTING)
        waiting_tokens = sum(book.num_unread_tokens for book in self._books) + sum(len(flight.request.prompt) for flight in self._parked.values())
        decision = self._speeds.admit(len(request.prompt), num_in_flight=len(self._flights), num_waiting_prompt_tokens=waiting_tokens)
        if not decision.admitted:
            self._measures.count_refused()
            raise Overloaded(decision.reason, retry_after_s=decision.retry_after_s or 1.0)
        call, now = current_call.get(), time.monotonic()
        if call is not None:
            request = replace(request, owner=call.owner or request.owner)
            if not request.shares_prompt:
                call.count_prompt(len(request.prompt))
        if request.id in self._flights:
            raise ValueError(f"request id {request.id!r} is in use")
        flight = Flight(request, call, call.started_s if call is not None else now)
        flight.timer = asyncio.get_running_loop().call_later(self._settings.request_timeout_s, self._expire, flight)
        self._flights[request.id] = flight
        self._idle.clear()
        return flight

    def _place(self, flight: Flight) -> None:
        """To the engine that the policy chooses, or parked until one may have it."""
        prefix = self._prefix(flight.request)
        engines = [self._state(replica, flight, prefix) for replica in self._fleet.replicas]
        route = choose(RoutingState(num_prompt_tokens=len(flight.request.prompt), engines=engines))
        if route is None:
            self._parked[flight.request.id] = flight
            return
        replica, book = self._fleet.replicas[route.index], self._books[route.index]
        flight.replica = replica
        flight.charge_tokens = len(flight.request.prompt) + self._expected_tokens(flight.request)
        flight.placed_s = time.monotonic()
        book.num_unread_tokens += len(flight.request.prompt)
        flight.ahead_tokens = book.num_unread_tokens if len(book.flights) < self._settings.max_running else None
        book.flights[flight.request.id] = flight
        if flight.num_crashes:
            book.suspect = flight
        book.num_tokens += flight.charge_tokens
        book.known.remember(prefix)
        self._count_work(replica)
        replica.send({"kind": "add", "request": flight.request.to_wire()})

    def _leave(self, flight: Flight) -> None:
        """Its reader is gone, having read all or not."""
        if not flight.done:
            self._abort(flight)
            is_complete = flight.call is not None and flight.request.id in flight.call.complete
            if is_complete:
                self._speeds.learn_answer(len(flight.delivered))
            self._measures.observe_end(flight, Finish.STOP if is_complete else Finish.ABORT)
        self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        if flight.timer is not None:
            flight.timer.cancel()
        self._detach(flight)
        self._parked.pop(flight.request.id, None)
        self._flights.pop(flight.request.id, None)
        if not self._flights:
            self._idle.set()

    def _detach(self, flight: Flight) -> None:
        """Off its replica's book."""
        if flight.replica is None:
            return
        book = self._books[flight.replica.index]
        if book.flights.pop(flight.request.id, None) is not None:
            book.num_tokens -= flight.charge_tokens
            self._read(flight, book)
        flight.charge_tokens = 0
        self._count_work(flight.replica)
        flight.replica = None
        if book.suspect is flight:
            book.suspect = None
            asyncio.get_running_loop().call_soon(self._unpark)

    def _abort(self, flight: Flight) -> None:
        if flight.replica is not None:
            flight.replica.send({"kind": "abort", "id": flight.request.id})

    def _expire(self, flight: Flight) -> None:
        if not flight.done:
            self._abort(flight)
            self._end(flight, f"not finished within {self._settings.request_timeout_s:g} s, the server's limit", finish=Finish.ABORT)

    def _end(self, flight: Flight, words: str, *, finish: Finish = Finish.ERROR) -> None:
        """Here, and not by its engine."""
        if flight.done:
            return
        self._measures.observe_end(flight, finish)
        if flight.call is not None:
            flight.call.error = words
        flight.put(Output(id=flight.request.id, finish=finish, error=words))
        self._forget(flight)

    def _turn_away(self, flight: Flight, words: str) -> None:
        """Nothing was done for it, so that asking again may help; one that has begun ends with an error."""
        if flight.first_s is not None:
            self._end(flight, words)
        elif not flight.done:
            self._measures.observe_end(flight, Finish.ERROR)
            flight.fail(Unavailable(words))
            self._forget(flight)

    # What the fleet says

    def on_ready(self, replica: Replica) -> None:
        """Gives it what was parked. Of what engines say of themselves, the newest word holds."""
        self._info = replica.info
        self._unpark()

    def _unpark(self) -> None:
        parked, self._parked = self._parked, {}
        for flight in parked.values():
            self._place(flight)

    def on_outputs(self, replica: Replica, outputs: list[Output]) -> None:
        """To their readers."""
        now, book = time.monotonic(), self._books[replica.index]
        for output in outputs:
            flight = book.flights.get(output.id)
            if flight is not None:  # else aborted: the engine had not heard yet
                self._deliver(flight, output, book, now)

    def _deliver(self, flight: Flight, output: Output, book: _Book, now: float) -> None:
        if not flight.is_heard and flight.ahead_tokens is not None:
            self._speeds.learn_prompt(flight.ahead_tokens, now - flight.placed_s)
        num_done = len(output.tokens) + self._read(flight, book)
        paid_tokens = min(flight.charge_tokens, num_done)
        flight.charge_tokens -= paid_tokens
        book.num_tokens -= paid_tokens
        fresh = flight.take(output)
        if fresh is None:
            return
        self._measures.observe_output(flight, fresh, now)
        if flight.call is not None:
            flight.call.count_output(len(fresh.tokens), now)
            if not flight.request.shares_prompt:
                flight.call.num_cached_tokens += fresh.num_cached_tokens or 0
        if fresh.finish is not None:
            self._finish(flight, fresh, output)

    def _read(self, flight: Flight, book: _Book) -> int:
        """Its engine has read its prompt, or it is taken off: tokens that this makes of it."""
        if flight.is_heard or flight.replica is None:
            return 0
        flight.is_heard = True
        book.num_unread_tokens -= len(flight.request.prompt)
        return len(flight.request.prompt)

    def _finish(self, flight: Flight, fresh: Output, output: Output) -> None:
        if output.finish is None:  # it is ended here, not by its engine
            self._abort(flight)
        if fresh.finish in (Finish.STOP, Finish.LENGTH) and not flight.request.embed:
            self._speeds.learn_answer(len(flight.delivered))
        if flight.call is not None and fresh.error is not None:
            flight.call.error = fresh.error
        self._measures.observe_end(flight, fresh.finish or Finish.ERROR)
        self._forget(flight)

    def on_lost(self, replica: Replica, loss: Loss) -> None:
        """Its requests go to others, or end with an error."""
        book = self._books[replica.index]
        book.known.forget()
        lost = list(book.flights.values())
        for flight in lost:
            self._detach(flight)
            flight.num_crashes += loss.crashed
        for flight in lost:
            self._recover(flight, loss)
        if (failure := self._fleet.failure) is not None:
            for flight in list(self._parked.values()):
                self._turn_away(flight, failure)

    def _recover(self, flight: Flight, loss: Loss) -> None:
        decision = retry(LossState(num_crashes=flight.num_crashes, begun=flight.begun))
        if not decision.again:
            self._end(flight, f"{decision.reason}: {loss.words.splitlines()[0]}")
            return
        self._measures.count_retry()
        flight.rewind()
        self._place(flight)

    # What the policy is told

    def _prefix(self, request: Request) -> tuple[int, ...]:
        if len(self._books) == 1 or self._info is None:
            return ()
        return prefix_hashes(request, self._info.page_tokens)

    def _state(self, replica: Replica, flight: Flight, prefix: tuple[int, ...]) -> EngineState:
        book = self._books[replica.index]
        ready = replica.is_ready and not (flight.num_crashes and book.suspect is not None)
        cached = book.known.count(prefix) * self._info.page_tokens if prefix and self._info is not None else 0
        return EngineState(index=replica.index, ready=ready, num_outstanding_tokens=book.num_tokens, num_cached_tokens=cached, num_requests=len(book.flights))

    def _expected_tokens(self, request: Request) -> int:
        return 0 if request.embed else self._speeds.expected_tokens(request.sampling.max_tokens)

    def _count_work(self, replica: Replica) -> None:
        replica.note_work(len(self._books[replica.index].flights))
