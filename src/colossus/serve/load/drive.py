"""Plays asks against a server, in a closed loop (clients that wait for their answers) or an open one (arrivals that wait for nobody)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice

import aiohttp
import numpy as np

from colossus.serve.load.client import Target, ask_server
from colossus.serve.load.sample import Sample
from colossus.serve.load.workload import Ask
from colossus.spec.load import ClientCost

_WATCH_S = 0.01  # between two looks at the loop's own lag
Tell = Callable[[int], None]  # how many requests have ended


@dataclass
class Watch:
    """Measures what this process costs while a test runs."""

    lags_s: list[float] = field(default_factory=list)
    begin_s: float = 0.0
    begin_cpu_s: float = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        self.begin_s, self.begin_cpu_s = time.perf_counter(), time.process_time()
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_WATCH_S)
            self.lags_s.append(time.perf_counter() - before - _WATCH_S)

    def cost(self, samples: Sequence[Sample]) -> ClientCost:
        wall_s, cpu_s = time.perf_counter() - self.begin_s, time.process_time() - self.begin_cpu_s
        lags = np.maximum(np.asarray(self.lags_s or [0.0]), 0.0)
        late = np.maximum(np.asarray([sample.sent_s - sample.arrival_s for sample in samples] or [0.0]), 0.0)
        return ClientCost(
            cpu_fraction=round(cpu_s / max(wall_s, 1e-9), 4),
            lag_p99_s=round(float(np.percentile(lags, 99)), 6),
            lag_max_s=round(float(lags.max()), 6),
            send_lag_p99_s=round(float(np.percentile(late, 99)), 6),
        )


async def warm_up(session: aiohttp.ClientSession, target: Target, asks: Sequence[Ask], num_requests: int) -> list[Sample]:
    """Requests before the test whose times are left out: all at once, with prompts that the test does not use."""
    chosen = [replace(ask, number=-1 - number, at_s=None) for number, ask in enumerate(islice(cycle(asks), num_requests if asks else 0))]
    return await closed_loop(session, target, chosen, max(1, len(chosen)), lambda _: None)


async def closed_loop(session: aiohttp.ClientSession, target: Target, asks: Sequence[Ask], num_clients: int, tell: Tell) -> list[Sample]:
    """Every client asks, waits for the whole answer, and asks again."""
    waiting, samples = iter(asks), list[Sample]()
    now_s = _clock()

    async def client() -> None:
        for ask in waiting:
            at_s = now_s()
            sample = Sample(ask=ask, arrival_s=at_s, sent_s=at_s)
            await ask_server(session, target, sample, now_s)
            samples.append(sample)
            tell(len(samples))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(num_clients, len(asks))):
            group.create_task(client())
    return samples


async def open_loop(session: aiohttp.ClientSession, target: Target, asks: Sequence[Ask], tell: Tell) -> list[Sample]:
    """Each ask at its own time, however many are on their way."""
    samples = list[Sample]()
    now_s = _clock()

    async def one(ask: Ask, at_s: float) -> None:
        sample = Sample(ask=ask, arrival_s=at_s, sent_s=at_s)
        await ask_server(session, target, sample, now_s)
        samples.append(sample)
        tell(len(samples))

    async with asyncio.TaskGroup() as group:
        for ask in asks:
            at_s = ask.at_s or 0.0
            if (left_s := at_s - now_s()) > 0:
                await asyncio.sleep(left_s)
            group.create_task(one(ask, at_s))
    return samples


def _clock() -> Callable[[], float]:
    begin_s = time.perf_counter()
    return lambda: time.perf_counter() - begin_s
