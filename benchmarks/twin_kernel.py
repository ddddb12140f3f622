"""Events a second of the twin's kernel and of SimPy's, the same work in turns on one core.

    python benchmarks/twin_kernel.py       # wants simpy, of the development dependencies

Clocks: so many things, each of which waits a time of its own again and again (SimPy: processes that yield timeouts; ours: actions that ask for their next).
Chain: one event that asks for the next, and nothing else waits (SimPy: a timeout with a callback, without a process). Events of both do nothing else.

Writes benchmarks/results/twin_kernel.json.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import simpy
from common import record, spread, version

from colossus.twin.kernel import Kernel

ROUNDS = 7
NUM_EVENTS = 300_000
CLOCKS = (10, 1_000, 100_000)
NUM_EACH = 10  # events of a clock, at least: setting up is part of the time


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    works: dict[str, tuple[Callable[[], int], Callable[[], int]]] = {"chain": (chain, simpy_chain)}
    works |= {f"{number:,} clocks": (lambda number=number: clocks(number), lambda number=number: simpy_clocks(number)) for number in CLOCKS}  # type: ignore[misc]
    figures: dict[str, Any] = {}
    for name, (ours, theirs) in works.items():
        rates: dict[str, list[float]] = {"colossus": [], "simpy": []}
        for _ in range(ROUNDS):
            rates["colossus"].append(rate(ours))
            rates["simpy"].append(rate(theirs))
        told: dict[str, Any] = {who: {"events_per_s": spread(found)} for who, found in rates.items()}
        figures[name] = told | {"times_as_fast": spread(rates["colossus"])["median"] / spread(rates["simpy"])["median"]}
    record("twin_kernel", {"simpy": version("simpy"), "num_events": NUM_EVENTS, "work": figures})
    print("| work | Colossus, events/s | SimPy, events/s | times |")
    print("|---|---|---|---|")
    for name, told in figures.items():
        both = [told[who]["events_per_s"] for who in ("colossus", "simpy")]
        print(
            f"| {name} | {both[0]['median']:,.0f} (best {both[0]['max']:,.0f}) | {both[1]['median']:,.0f} (best {both[1]['max']:,.0f}) | {told['times_as_fast']:.1f} |"
        )


def rate(work: Callable[[], int]) -> float:
    begin = time.process_time()
    number = work()
    return number / (time.process_time() - begin)


def chain() -> int:
    kernel = Kernel()
    after = kernel.after

    def on(left: int) -> None:
        if left:
            after(1.0, on, left - 1)

    kernel.after(1.0, on, NUM_EVENTS - 1)
    kernel.run()
    return kernel.num_events


def simpy_chain() -> int:
    env = simpy.Environment()
    left = NUM_EVENTS

    def on(_: simpy.Event) -> None:
        nonlocal left
        left -= 1
        if left:
            env.timeout(1.0).callbacks.append(on)

    env.timeout(1.0).callbacks.append(on)
    env.run()
    return NUM_EVENTS


def clocks(number: int) -> int:
    kernel = Kernel()
    after = kernel.after

    def on(period_s: float) -> None:
        after(period_s, on, period_s)

    for place in range(number):
        kernel.after(period_of(place), on, period_of(place))
    kernel.run(until_s(number))
    return kernel.num_events


def simpy_clocks(number: int) -> int:
    env, count = simpy.Environment(), [0]

    def clock(period_s: float) -> Iterator[simpy.Event]:
        timeout = env.timeout
        while True:
            yield timeout(period_s)
            count[0] += 1

    for place in range(number):
        env.process(clock(period_of(place)))
    env.run(until_s(number))
    return count[0]


def period_of(place: int) -> float:
    """Between 1 and 2 s, no two the same."""
    return 1.0 + (place * 0.6180339887) % 1.0


def until_s(number: int) -> float:
    return max(NUM_EVENTS, NUM_EACH * number) / number * 1.44


if __name__ == "__main__":
    main()
