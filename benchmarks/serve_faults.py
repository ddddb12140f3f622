"""What a server survives: SIGKILLs of its engines under load, bodies that make no sense, clients that leave or do not read.

    python benchmarks/serve_faults.py [--model llama15m] [--kills 50] [--bodies 10000] [--leavers 300] [--parts kills bodies clients]

Kills: two replicas, 8 clients; whenever both are ready, one is killed at random. No request may be lost whose answer had not begun; those that had end with an
error event. Bodies: mutations of valid ones, and noise; nothing may be answered with 500 or kill the server. Clients: they leave in mid answer, or stop reading.
After each part all counts of the engine return to zero, the pages of the cache among them. Writes benchmarks/results/serve_faults.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from common import ROOT, record, spread
from serve_models import SHAPES, make
from serving import Served, ours_command

from colossus.serve.load.client import Endpoint, Target, ask_server
from colossus.serve.load.prompts import make_prompts
from colossus.serve.load.sample import Sample
from colossus.serve.load.server import connections, find_server, get_json
from colossus.serve.load.workload import Ask

_PATIENCE_S = 180.0
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/tokenize", "/detokenize")


async def kills(url: str, num_kills: int, chance: random.Random) -> dict[str, Any]:
    samples, over = list[Sample](), asyncio.Event()
    async with connections() as session:
        found = await find_server(session, url, None)
        target = Target(server=found, endpoint=Endpoint.COMPLETIONS, prompts=await make_prompts(session, found, chat=False, seed=1), timeout_s=_PATIENCE_S)

        async def client() -> None:
            while not over.is_set():
                at_s = time.perf_counter()
                sample = Sample(ask=Ask(number=len(samples), prompt_tokens=32, output_tokens=64), arrival_s=at_s, sent_s=at_s)
                samples.append(sample)
                await ask_server(session, target, sample, time.perf_counter)

        clients = [asyncio.create_task(client()) for _ in range(8)]
        watching = asyncio.create_task(downtimes(session, url, over))
        restarts = []
        for _ in range(num_kills):
            replicas = await until_ready(session, url)
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            os.kill(chance.choice(replicas)["pid"], signal.SIGKILL)
            killed_s = time.monotonic()
            await asyncio.sleep(0.5)
            await until_ready(session, url)
            restarts.append(time.monotonic() - killed_s)
        over.set()
        await asyncio.gather(*clients)
        stats = await until_idle(session, url)
    lost = [sample for sample in samples if sample.error is not None and not sample.texts_s]
    broken = Counter(sample.error for sample in samples if sample.error is not None and sample.texts_s)
    assert not lost, Counter(f"{sample.error}: {sample.detail}" for sample in lost)
    assert set(broken) <= {"error event"}, broken
    return {"kills": num_kills, "requests": len(samples), "lost_before_streaming": len(lost), "ended_with_an_error_event": sum(broken.values())} | {
        "restart_s": spread(restarts),
        "not_ready_s": spread(await watching or [0.0]),
        "losses_told_by_the_server": sum(replica["num_losses"] for replica in stats["replicas"]),
    }


async def until_ready(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        stats = await get_json(session, f"{url}/stats")
        if all(replica["state"] == "ready" for replica in stats["replicas"]):
            return list(stats["replicas"])
        assert time.monotonic() < deadline_s, stats["replicas"]
        await asyncio.sleep(0.1)


async def until_idle(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """All counts back at zero; the server's own words otherwise."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        stats: dict[str, Any] = await get_json(session, f"{url}/stats")
        if not any(stats[name] for name in ("running", "waiting", "in_flight", "outstanding_tokens", "kv_used_fraction")):
            return stats
        assert time.monotonic() < deadline_s, stats
        await asyncio.sleep(0.1)


async def downtimes(session: aiohttp.ClientSession, url: str, over: asyncio.Event) -> list[float]:
    """Stretches in which no replica was ready."""
    found, since = list[float](), None
    while not over.is_set():
        async with session.get(f"{url}/ready") as response:
            if response.status == 200 and since is not None:
                found.append(time.monotonic() - since)
                since = None
            elif response.status != 200 and since is None:
                since = time.monotonic()
        await asyncio.sleep(0.05)
    return found


async def bodies(url: str, number: int, chance: random.Random) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    numbers = iter(range(number))
    async with connections() as session:

        async def client() -> None:
            for _ in numbers:
                path, body = chance.choice(PATHS), fuzzed(chance)
                try:
                    async with session.post(
                        url + path, data=body, headers={"Content-Type": "application/json"}, timeout=aiohttp.ClientTimeout(total=20)
                    ) as response:
                        await response.read()
                        statuses[str(response.status)] += 1
                        assert response.status < 500 or response.status == 503, (path, response.status, body[:2000])
                except TimeoutError:
                    statuses["left"] += 1  # a valid one with a long answer

        await asyncio.gather(*(client() for _ in range(16)))
        await until_idle(session, url)
    return {"bodies": number, "statuses": dict(sorted(statuses.items()))}


def fuzzed(chance: random.Random) -> bytes:
    """Noise, a valid body with a few values changed, or its text damaged."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(200))
    body: dict[str, Any] = {
        "model": None,
        "prompt": "ab",
        "input": "ab",
        "messages": [{"role": "user", "content": "ab"}],
        "max_tokens": 2,
        "stream": chance.random() < 0.3,
    }
    names = [
        *body,
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "seed",
        "stop",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "tools",
        "tool_choice",
        "response_format",
    ]
    names += [
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "echo",
        "suffix",
        "best_of",
        "stream_options",
        "user",
        "min_tokens",
        "tokens",
        "role",
    ]
    for _ in range(chance.randrange(4)):
        body[chance.choice(names)] = value(chance, 0)
    if body["model"] is None:
        del body["model"]
    text = json.dumps(body).encode()
    if chance.random() < 0.2:
        place = chance.randrange(len(text))
        text = text[:place] + chance.choice([b"", b"\xff\xfe", b"\\ud800", b"\x00", b"}" * 9, b"[" * 300, b'"']) + text[place + chance.randrange(5) :]
    return text


def value(chance: random.Random, depth: int) -> Any:
    plain = [
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        2**64,
        -(2**70),
        1e308,
        0.5,
        -0.5,
        float("nan"),
        float("inf"),
        "",
        "a",
        "\x00",
        "\ud800",
        "é" * 50,
        "x" * 5000,
    ]
    if depth > 3 or chance.random() < 0.6:
        return chance.choice(plain)
    if chance.random() < 0.5:
        return [value(chance, depth + 1) for _ in range(chance.randrange(5))]
    names = ("type", "role", "content", "function", "name", "json_schema", "schema", "properties", "text", "0", "99999999", "")
    return {chance.choice(names): value(chance, depth + 1) for _ in range(chance.randrange(5))}


async def clients(url: str, number: int, chance: random.Random) -> dict[str, Any]:
    """Some leave in mid answer, some never read."""
    async with connections() as session:
        found = await find_server(session, url, None)
        body = {"model": found.model, "prompt": "a b c", "max_tokens": 400, "stream": True, "ignore_eos": True}

        async def leave() -> None:
            with_stream = body | {"stream": chance.random() < 0.7}
            try:
                async with asyncio.timeout(chance.uniform(0.0, 1.0)), session.post(f"{url}/v1/completions", json=with_stream) as response:
                    async for _ in response.content.iter_any():
                        pass
            except TimeoutError:
                pass

        deaf = [unread(url, body) for _ in range(16)]
        for begin in range(0, number, 32):
            await asyncio.gather(*(leave() for _ in range(min(32, number - begin))))
        for line in deaf:
            line.close()
        await until_idle(session, url)
        async with session.post(f"{url}/v1/completions", data=b'{"prompt": "' + b"a" * (32 << 20) + b'"}') as response:
            oversized = response.status
    assert oversized == 413, oversized
    return {"left": number, "never_read": len(deaf), "oversized_status": oversized}


def unread(url: str, body: dict[str, Any]) -> socket.socket:
    """A request whose answer nobody takes."""
    host, _, port = url.removeprefix("http://").partition(":")
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    line.connect((host, int(port)))
    data = json.dumps(body).encode()
    line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    return line


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama15m", choices=list(SHAPES))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--leavers", type=int, default=300)
    parser.add_argument("--parts", nargs="+", default=["kills", "bodies", "clients"], choices=["kills", "bodies", "clients"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve-option", action="append", default=[])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "serve_models")
    a = parser.parse_args()
    home = make(SHAPES[a.model], a.folder)
    todo = {"kills": (kills, a.kills, 2), "bodies": (bodies, a.bodies, 1), "clients": (clients, a.leavers, 1)}
    figures: dict[str, Any] = {"model": a.model, "seed": a.seed}
    for name in a.parts:
        part, number, replicas = todo[name]
        options = ["--replicas", str(replicas), "--max-running", "16", "--max-sequence-tokens", "1024", *a.serve_option]
        server = Served("colossus", lambda port, options=options: ours_command(home, port, *options))  # type: ignore[misc]
        try:
            figures[name] = asyncio.run(part(server.url, number, random.Random(f"{a.seed} {name}")))
            assert server.child.process.poll() is None, server.child.last_words()
        except BaseException:
            print(server.child.last_words())
            raise
        finally:
            server.child.end()
        print(name, figures[name], flush=True)
    print(record("serve_faults", figures))


if __name__ == "__main__":
    main()
