"""What the router counts of requests: totals for Prometheus, and the last minute second by second for the page."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from colossus.serve.flight import Flight
from colossus.serve.request import Finish, Output

WINDOW_S = 60
HISTORY_S = 120

# Bounds of the histograms, in seconds and in tokens.
FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
TOKEN_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
REQUEST_S = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0, 480.0, 960.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)


class Histogram:
    """Counts by upper bound, as Prometheus has them. Adding the same value many times costs what one costs."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


_FINEST_S = 1e-4
_RATIO = 1.1
_NUM_SIZES = 180  # up to some 2,500 s


class Spread:
    """Durations in classes 10 % apart, so that any percentile is known within 5 %, from few numbers."""

    __slots__ = ("counts", "num")

    def __init__(self) -> None:
        self.counts = np.zeros(_NUM_SIZES, np.int64)
        self.num = 0

    def add(self, value_s: float, times: int = 1) -> None:
        self.num += times
        size = 0 if value_s <= _FINEST_S else min(_NUM_SIZES - 1, 1 + int(math.log(value_s / _FINEST_S) / math.log(_RATIO)))
        self.counts[size] += times


def percentiles(spreads: Sequence[Spread], shares: Sequence[float] = (0.5, 0.9, 0.99)) -> list[float] | None:
    """Of all values in these spreads; None where there are none."""
    total = sum(spread.num for spread in spreads)
    if total == 0:
        return None
    seen = np.cumsum(sum(spread.counts for spread in spreads if spread.num))
    sizes = np.searchsorted(seen, [share * total for share in shares])
    return [float(_FINEST_S * _RATIO ** (size - 0.5)) for size in sizes]


class Second:
    """What happened in one second."""

    __slots__ = ("first_token", "load", "num_ended", "num_output_tokens", "num_prompt_tokens", "num_refused", "request", "time_s", "token")

    def __init__(self, time_s: int) -> None:
        self.time_s = time_s
        self.num_output_tokens = 0
        self.num_prompt_tokens = 0
        self.num_ended = 0
        self.num_refused = 0
        self.first_token, self.token, self.request = Spread(), Spread(), Spread()
        self.load: tuple[int, int, float] | None = None  # running, waiting, share of the cache in use; noted at its end


class Measures:
    """Told by the router; read by ``metrics`` and ``summary``. All times on ``time.monotonic``."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.num_prompt_tokens = 0
        self.num_output_tokens = 0
        self.num_refused = 0
        self.num_retries = 0
        self.ended = dict.fromkeys(Finish, 0)
        self.first_token_s = Histogram(FIRST_TOKEN_S)
        self.token_s = Histogram(TOKEN_S)
        self.per_token_s = Histogram(TOKEN_S)
        self.request_s = Histogram(REQUEST_S)
        self.prompt_tokens = Histogram(TOKENS)
        self.output_tokens = Histogram(TOKENS)
        self._seconds: list[Second] = [Second(int(self.started_s))]

    def observe_output(self, flight: Flight, output: Output, now: float) -> None:
        """New tokens of a request: time to the first, and between the others. Tokens that come together share the time since those before."""
        second, num_tokens = self._second(now), len(output.tokens)
        second.num_output_tokens += num_tokens
        self.num_output_tokens += num_tokens
        if flight.first_s is None:
            flight.first_s = now
            self._observe_first(flight, second, now)
            num_tokens, gap_s = num_tokens - 1, 0.0
        else:
            gap_s = (now - flight.last_s) / max(1, num_tokens)
        if num_tokens > 0:
            self.token_s.add(gap_s, num_tokens)
            second.token.add(gap_s, num_tokens)
        if output.tokens:
            flight.last_s = now

    def _observe_first(self, flight: Flight, second: Second, now: float) -> None:
        num_prompt = len(flight.request.prompt)
        flight.last_s = now
        self.num_prompt_tokens += num_prompt
        second.num_prompt_tokens += num_prompt
        self.first_token_s.add(now - flight.arrival_s)
        second.first_token.add(now - flight.arrival_s)

    def observe_end(self, flight: Flight, finish: Finish) -> None:
        """A request is over, however."""
        now, num_output = time.monotonic(), len(flight.delivered)
        second, taken_s = self._second(now), now - flight.arrival_s
        self.ended[finish] += 1
        second.num_ended += 1
        if finish in (Finish.ABORT, Finish.ERROR):
            return
        self.request_s.add(taken_s)
        second.request.add(taken_s)
        self.prompt_tokens.add(len(flight.request.prompt))
        self.output_tokens.add(num_output)
        if num_output > 1 and flight.first_s is not None:
            self.per_token_s.add((flight.last_s - flight.first_s) / (num_output - 1))

    def count_refused(self) -> None:
        self.num_refused += 1
        self._second(time.monotonic()).num_refused += 1

    def count_retry(self) -> None:
        self.num_retries += 1

    def note_load(self, num_running: int, num_waiting: int, kv_used_fraction: float) -> None:
        """Of this moment; kept with this second."""
        self._second(time.monotonic()).load = (num_running, num_waiting, kv_used_fraction)

    def seconds(self, num: int) -> list[Second]:
        """The last ``num`` whole or begun seconds, oldest first, those without any event included."""
        self._second(time.monotonic())
        return self._seconds[-num:]

    def _second(self, now: float) -> Second:
        last = self._seconds[-1]
        if int(now) == last.time_s:
            return last
        first = max(last.time_s + 1, int(now) - HISTORY_S)
        self._seconds += [Second(time_s) for time_s in range(first, int(now) + 1)]
        del self._seconds[: -HISTORY_S - 1]
        return self._seconds[-1]
