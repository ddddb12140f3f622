"""A whole load test: finds the server, warms it up, plays every load, and gathers the figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from colossus.serve.load.client import Endpoint, Target
from colossus.serve.load.drive import Watch, closed_loop, open_loop, warm_up
from colossus.serve.load.errors import ServerError
from colossus.serve.load.measures import load_point
from colossus.serve.load.prompts import make_prompts
from colossus.serve.load.sample import Sample
from colossus.serve.load.server import Server, connections, find_server
from colossus.serve.load.workload import Ask, scaled
from colossus.spec.load import LoadPoint, LoadTest, Objectives

_BUSY_FRACTION, _LATE_S = 0.7, 0.02  # of the client's core, and of its loop: above, its figures are in doubt
_JUDGED_FROM_S = 1.0  # shorter tests say nothing of the client's share of a core
_CACHED_FRACTION = 0.05  # of prompt tokens: above, a note says so
CLIENT_IN_DOUBT = "The client was busy or late itself"


@dataclass(frozen=True, kw_only=True)
class Load:
    """One load to play. ``num_clients`` makes a closed loop; without it, the asks arrive at their times."""

    label: str
    asks: Sequence[Ask]
    num_clients: int | None = None
    offered_requests_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Order:
    """A load test as its user orders it. ``num_warmup_requests``: before each load; None takes as many as its clients, 8 at most.

    :param lengths: tokens of a prompt and of an answer as ordered, where all are about so long: refused where the server's context is shorter.
    """

    url: str
    loads: Sequence[Load]
    workload: str
    model: str | None = None
    api_key: str | None = None
    endpoint: Endpoint = Endpoint.COMPLETIONS
    objectives: Objectives = field(default_factory=Objectives)
    seed: int = 0
    num_warmup_requests: int | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    timeout_s: float = 600.0
    lengths: tuple[int, int] | None = None


Tell = Callable[[str, int, int], None]  # load, ended, all
Keep = Callable[[str, Sequence[Sample]], None]


async def run(order: Order, tell: Tell, keep: Keep | None = None) -> LoadTest:
    """Plays all loads in turn. ``keep`` gets each load's samples."""
    started_at_s = time.time()
    async with connections(order.api_key) as session:
        server = await find_server(session, order.url, order.model, order.api_key)
        _check_lengths(order, server)
        prompts = await make_prompts(session, server, chat=order.endpoint is Endpoint.CHAT, seed=order.seed)
        target = Target(
            server=server, endpoint=order.endpoint, prompts=prompts, temperature=order.temperature, ignore_eos=order.ignore_eos, timeout_s=order.timeout_s
        )
        points = [await _play(session, order, target, load, tell, keep) for load in order.loads]
    return LoadTest(
        url=server.url,
        model=server.model,
        endpoint=order.endpoint.path,
        workload=order.workload,
        seed=order.seed,
        started_at_s=started_at_s,
        objectives=order.objectives,
        points=tuple(points),
        notes=(*_cut_notes(order, server), *_notes(points, exact=prompts.exact, ignore_eos=order.ignore_eos)),
    )


async def _play(session: aiohttp.ClientSession, order: Order, target: Target, load: Load, tell: Tell, keep: Keep | None) -> LoadPoint:
    asks = scaled(load.asks, max_sequence_tokens=target.server.max_sequence_tokens)
    wanted = min(load.num_clients or 8, 8) if order.num_warmup_requests is None else order.num_warmup_requests
    warm = await warm_up(session, target, asks, wanted)
    _check(target, warm)
    watch = Watch()
    watching = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    try:
        if load.num_clients is not None:
            samples = await closed_loop(session, target, asks, load.num_clients, lambda number: tell(load.label, number, len(asks)))
        else:
            samples = await open_loop(session, target, asks, lambda number: tell(load.label, number, len(asks)))
        cost = watch.cost(samples)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    if keep is not None:
        keep(load.label, samples)
    named: dict[str, Any] = {"label": load.label, "num_clients": load.num_clients, "offered_requests_per_s": load.offered_requests_per_s}
    return load_point(samples, order.objectives, load=named, num_warmup_requests=len(warm), client=cost)


def _check_lengths(order: Order, server: Server) -> None:
    """Lengths that cannot be kept are not played under their name."""
    most = server.max_sequence_tokens
    if order.lengths is None or most is None or sum(order.lengths) <= most:
        return
    prompt, output = order.lengths
    words = f"prompts of {prompt} tokens with answers of {output} are {prompt + output} tokens, and {server.model} at {server.url} takes {most} at most"
    hint = f"--prompt-tokens {most - output} at most" if output < most else f"--prompt-tokens and --output-tokens of {most} at most together"
    raise ServerError(words, hint=f"give {hint}, or serve a model with a longer context")


def _cut_notes(order: Order, server: Server) -> list[str]:
    """Of a trace or of drawn lengths, some may be too long."""
    most = server.max_sequence_tokens
    asks = [ask for load in order.loads for ask in load.asks]
    num_cut = sum(most is not None and ask.prompt_tokens + ask.output_tokens > most for ask in asks)
    return [f"The server's context of {most} tokens is too short for {num_cut} of the {len(asks)} requests: they were cut."] if num_cut else []


def _check(target: Target, warm: Sequence[Sample]) -> None:
    """A test whose every request fails is not worth playing; one that is only refused for now is."""
    failed = [sample for sample in warm if sample.error not in (None, "429", "503")]
    if warm and len(failed) == len(warm):
        other = "completions" if target.endpoint is Endpoint.CHAT else "chat"
        words = f"{target.server.url} answered no warm-up request: {failed[0].error}: {failed[0].detail}"
        raise ServerError(words, hint=f"try --endpoint {other}, or fewer tokens")


def _notes(points: Sequence[LoadPoint], *, exact: bool, ignore_eos: bool) -> list[str]:
    notes = []
    if not exact:
        notes.append("The server has no /tokenize: prompts are of about so many tokens; its own counts are shown.")
    if any(point.counted_by == "events" for point in points):
        notes.append("The server counts no tokens in its streams: each event with text was taken for one.")
    num_prompt, num_cached = (sum(getattr(point, name) for point in points) for name in ("num_prompt_tokens", "num_cached_tokens"))
    if num_cached > _CACHED_FRACTION * num_prompt:
        share = f"{num_cached / num_prompt:.0%}"
        notes.append(f"{share} of the prompt tokens came from the server's prefix cache: shared on purpose, or asked before (another --seed asks anew).")
    if any(point.num_short_answers for point in points):
        why = "it heeds no ignore_eos" if ignore_eos else "they came to their own end"
        notes.append(f"Some answers were shorter than asked: {why}.")
    if any((point.num_events_per_token or 1.0) < 0.7 for point in points):
        notes.append("The server sends several tokens in one event: ITL is between events.")
    if any(_in_doubt(point) for point in points):
        notes.append(f"{CLIENT_IN_DOUBT}: latencies may be its own. Run it on another machine or with fewer clients.")
    return notes


def _in_doubt(point: LoadPoint) -> bool:
    busy = point.wall_s > _JUDGED_FROM_S and point.client.cpu_fraction > _BUSY_FRACTION
    return busy or point.client.lag_p99_s > _LATE_S
