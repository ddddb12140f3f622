"""Routers and doors over scripted engines, which are real processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossus.engine.replicas import LocalReplicas, Share
from colossus.serve.measures import Measures
from colossus.serve.replicas import Fleet, Replica
from colossus.serve.request import Output, Request, Sampling
from colossus.serve.router import Router
from colossus.serve.settings import RouterSettings
from tests.serve.scripted_worker import token_at

PROGRAM = (str(Path(__file__).with_name("scripted_worker.py")),)
PATIENCE_S = 30.0
_numbers = itertools.count()


def launcher(folder: Path, num_replicas: int = 1, **options: Any) -> LocalReplicas:
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    share = Share(cores=(), environment=environment, words="all")
    return LocalReplicas(folder, json.dumps(options), [share] * num_replicas, program=PROGRAM)


@dataclass
class Cluster:
    fleet: Fleet
    router: Router
    measures: Measures

    def kill(self, index: int, number: int = signal.SIGKILL) -> None:
        process = self.fleet.replicas[index].process
        assert process is not None
        os.kill(process.pid, number)


@contextlib.asynccontextmanager
async def cluster(folder: Path, settings: RouterSettings | None = None, *, wait: bool = True, **options: Any) -> AsyncIterator[Cluster]:
    settings = settings or RouterSettings()
    measures, talk = Measures(), []
    fleet = Fleet(launcher(folder, settings.num_replicas, **options), settings, say=talk.append)
    router = Router(fleet, settings, measures)
    await fleet.start(router)
    made = Cluster(fleet, router, measures)
    try:
        if wait:
            await until(lambda: len(fleet.ready) == settings.num_replicas)
        yield made
    finally:
        await fleet.stop()
        assert not [replica for replica in fleet.replicas if lives(replica)]


def lives(replica: Replica) -> bool:
    return replica.process is not None and replica.process.exit_code is None


async def until(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.01)


def ask(prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 5, seed: int = 0, **fields: Any) -> Request:
    return Request(id=f"r{next(_numbers)}", prompt=prompt, sampling=Sampling(max_tokens=max_tokens, seed=seed), **fields)


def answer(request: Request) -> list[int]:
    return [token_at(request, place) for place in range(request.sampling.max_tokens)]


async def collect(router: Router, request: Request) -> list[Output]:
    return [output async for output in router.submit(request)]


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]
