"""The run's own clock: its sessions one after the other, without the pauses between them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from colossus.report.ledger import MICRO
from colossus.report.record import Pause
from colossus.spec.event import Event

_REORDER_WINDOW = 4096


def in_time_order(events: Iterable[Event]) -> Iterator[Event]:
    """Sorted by time within a bounded window, ties in the order given: constant memory for any length."""
    heap: list[tuple[float, int, Event]] = []
    for sequence, event in enumerate(events):
        if sequence < _REORDER_WINDOW:
            heapq.heappush(heap, (event.time_s, sequence, event))
        else:
            yield heapq.heappushpop(heap, (event.time_s, sequence, event))[2]
    while heap:
        yield heapq.heappop(heap)[2]


class RunClock:
    """Microseconds of run time for events given in time order."""

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.pauses: list[Pause] = []
        self._last_s = 0.0
        self._base_s = 0.0
        self._session_us = 0

    def at_us(self, event: Event, *, given_us: int) -> int:
        """When the event was told. ``given_us``: how much run time already has a cause."""
        begin_s = event.time_s - _length_s(event)
        if self.first_s is None:
            self.first_s = self._base_s = begin_s
        elif event.kind == "data_ready" and given_us == self._session_us:
            self._begin_earlier(begin_s)
        self._last_s = event.time_s
        return round((event.time_s - self._base_s) * MICRO)

    def resume(self, event: Event, *, now_us: int) -> None:
        """A new session begins with ``event``; the time since the last one is a pause."""
        self._session_us = now_us
        self._base_s = event.time_s - now_us / MICRO
        self.pauses.append(Pause(at_s=now_us / MICRO, duration_s=round(event.time_s - self._last_s, 6)))

    def _begin_earlier(self, begin_s: float) -> None:
        """Data is readied before the run has a folder to tell it in, so the telling moves the session's beginning."""
        shift_s = self._base_s + self._session_us / MICRO - begin_s
        if self.pauses:
            shift_s = min(shift_s, self.pauses[-1].duration_s)
        if shift_s <= 0 or self.first_s is None:
            return
        self._base_s -= shift_s
        if self.pauses:
            pause = self.pauses.pop()
            self.pauses.append(Pause(at_s=pause.at_s, duration_s=round(pause.duration_s - shift_s, 6)))
        else:
            self.first_s -= shift_s


def _length_s(event: Event) -> float:
    """How far before its line an event began."""
    return max(0.0, float(event.payload.get("duration_s") or 0.0))
