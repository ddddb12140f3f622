"""Discrete events in order of time, priority, and the sequence they were asked for; beside them one list of times known from the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Any

Action = Callable[[Any], object]


class Kernel:
    """A clock that jumps from event to event. An event is a function and its argument; it may ask for more events, at its own time or later.

    ``fed_s``, ``fed_place``: the next of the times that were fed.

    Of equal times the lower priority number goes first, then what was asked for first: two runs of the same calls go the same way.
    """

    __slots__ = ("_feed", "_feed_action", "_queue", "_sequence", "_until_s", "fed_place", "fed_s", "now_s", "num_events")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_events = 0
        self._queue: list[tuple[float, int, int, Action, Any]] = []
        self._sequence = 0
        self._until_s = self.fed_s = inf
        self._feed: Sequence[float] = ()
        self.fed_place = 0
        self._feed_action: Callable[[int], object] = lambda place: None

    def feed(self, times_s: Sequence[float], action: Callable[[int], object]) -> None:
        """Calls ``action(place)`` at each of ``times_s``, ascending, after all other events of that time. It costs less than as many ``at``."""
        self._feed, self._feed_action, self.fed_place = times_s, action, 0
        self.fed_s = times_s[0] if times_s else inf

    def at(self, time_s: float, action: Action, argument: Any = None, priority: int = 0) -> None:
        """Calls ``action(argument)`` at ``time_s``; a time that has passed is a ValueError."""
        if time_s < self.now_s:
            raise ValueError(f"an event at {time_s} s is before now, {self.now_s} s")
        self._sequence = sequence = self._sequence + 1
        heappush(self._queue, (time_s, priority, sequence, action, argument))

    def after(self, delay_s: float, action: Action, argument: Any = None, priority: int = 0) -> None:
        """Calls ``action(argument)`` in ``delay_s``."""
        self.at(self.now_s + delay_s, action, argument, priority)

    def is_free(self, time_s: float) -> bool:
        """Whether no event comes up to and at that time."""
        queue = self._queue
        return not (time_s > self._until_s or self.fed_s <= time_s or (queue and queue[0][0] <= time_s))

    def jump(self, time_s: float) -> bool:
        """Makes it ``time_s`` where no event comes before or at that time, so that what would be asked for then can be done at once; whether it did."""
        if not self.is_free(time_s):
            return False
        self.now_s = time_s
        self.num_events += 1
        return True

    def run(self, until_s: float = inf) -> None:
        """Plays the events up to and including ``until_s``."""
        queue, pop, number = self._queue, heappop, 0
        self._until_s = until_s
        while True:
            if queue and queue[0][0] <= self.fed_s:
                if queue[0][0] > until_s:
                    break
                self.now_s, _, _, action, argument = pop(queue)
                action(argument)
            elif self.fed_s <= until_s and self.fed_s < inf:
                self.now_s, place = self.fed_s, self.fed_place
                self.fed_place = following = place + 1
                self.fed_s = self._feed[following] if following < len(self._feed) else inf
                self._feed_action(place)
            else:
                break
            number += 1
        self.num_events += number

    def skip_to(self, place: int) -> None:
        """Passes over the times that were fed, up to that place."""
        self.fed_place = place
        self.fed_s = self._feed[place] if place < len(self._feed) else inf

    def clear(self) -> None:
        """Forgets all events to come, which ends ``run``."""
        self._queue.clear()
        self.fed_s = inf
