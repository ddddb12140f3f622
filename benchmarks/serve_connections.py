"""A thousand clients at once on one server that runs 64 requests: errors, memory over 10,000 requests, and how fast /health answers meanwhile.

    python benchmarks/serve_connections.py [--model llama15m] [--clients 1000] [--requests 10000] [--serve-option=...]

Every client holds a connection and asks again until enough requests are answered; who is told 429 waits a second. /health is asked 20 times a second by a
process of its own on a new connection each time. Memory: resident bytes of the door and its engines together, from the first fifth of the requests on.
Writes benchmarks/results/serve_connections.json.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import ROOT, record
from serve_models import SHAPES, make
from serving import Served, ours_command

from colossus.serve.load.client import Endpoint, Target, ask_server
from colossus.serve.load.prompts import make_prompts
from colossus.serve.load.sample import Sample
from colossus.serve.load.server import connections, find_server, get_json
from colossus.serve.load.workload import Ask

PROBE = """
import http.client, sys, time
host, port, every = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
while True:
    begin = time.perf_counter()
    try:
        line = http.client.HTTPConnection(host, port, timeout=30)
        line.request("GET", "/health")
        status = line.getresponse().status
        line.close()
    except OSError as error:
        status = type(error).__name__
    print(time.perf_counter() - begin, status, flush=True)
    time.sleep(every)
"""


class Watch:
    """Memory by requests answered."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.seen: list[tuple[int, int]] = []

    def look(self, answered: int) -> None:
        total = 0
        for process in (self.root, *self.root.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.seen.append((answered, total))


async def storm(server: Served, num_clients: int, num_requests: int, watch: Watch) -> tuple[Counter[str], int]:
    """Errors by kind (429 among them), and how many were answered."""
    errors: Counter[str] = Counter()
    answered = asked = 0
    async with connections() as session:
        found = await find_server(session, server.url, None)
        target = Target(server=found, endpoint=Endpoint.COMPLETIONS, prompts=await make_prompts(session, found, chat=False, seed=1))

        async def client() -> None:
            nonlocal answered, asked
            while answered < num_requests:
                asked += 1
                sample = Sample(ask=Ask(number=asked, prompt_tokens=16, output_tokens=8), arrival_s=0.0, sent_s=0.0)
                await ask_server(session, target, sample, time.perf_counter)
                if sample.error is None:
                    answered += 1
                    if answered % max(1, num_requests // 50) == 0:
                        watch.look(answered)
                else:
                    errors[f"{sample.error}: {sample.detail}" if sample.error != "429" else "429"] += 1
                    await asyncio.sleep(1.0)

        await asyncio.gather(*(client() for _ in range(num_clients)))
        await asyncio.sleep(1.0)
        stats = await get_json(session, f"{server.url}/stats")
    assert stats["running"] == stats["waiting"] == stats["in_flight"] == 0 and stats["kv_used_fraction"] == 0, stats
    return errors, answered


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama15m", choices=list(SHAPES))
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--serve-option", action="append", default=[])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "serve_models")
    a = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536) if most > 0 else 65536, most))
    home = make(SHAPES[a.model], a.folder)
    server = Served("colossus", lambda port: ours_command(home, port, "--max-running", "64", *a.serve_option))
    probe = subprocess.Popen([sys.executable, "-c", PROBE, "127.0.0.1", str(server.port), "0.05"], stdout=subprocess.PIPE, text=True)
    try:
        watch = Watch(server.child.process.pid)
        begin_s = time.monotonic()
        errors, answered = asyncio.run(storm(server, a.clients, a.requests, watch))
        wall_s = time.monotonic() - begin_s
    finally:
        probe.terminate()
        told = probe.communicate()[0].splitlines()
        server.child.end()
    figures = {"model": a.model, "clients": a.clients, "answered": answered, "wall_s": wall_s, "requests_per_s": answered / wall_s, "errors": dict(errors)}
    figures |= health([line.split() for line in told if len(line.split()) == 2]) | memory(watch.seen, a.requests)
    path = record("serve_connections", figures)
    print(f"{answered} answered by {a.clients} clients, {answered / wall_s:.0f}/s; errors {dict(errors)}")
    print(f"/health p99 {figures['health_p99_s'] * 1e3:.1f} ms of {figures['health_asked']}; memory grew {figures['memory_growth_fraction']:+.1%}; {path}")


def health(rows: list[list[str]]) -> dict[str, Any]:
    times = [float(seconds) for seconds, _ in rows]
    shares = dict(zip(("p50", "p99"), np.percentile(times, (50, 99)), strict=True))
    return {"health_asked": len(rows), "health_failed": sum(status != "200" for _, status in rows)} | {
        f"health_{name}_s": float(value) for name, value in shares.items()
    }


def memory(seen: list[tuple[int, int]], num_requests: int) -> dict[str, Any]:
    """Growth from the mean of the second fifth to that of the last."""
    early = [size for answered, size in seen if num_requests * 0.2 <= answered < num_requests * 0.4]
    late = [size for answered, size in seen if answered >= num_requests * 0.8]
    return {"memory_bytes": {"early": float(np.mean(early)), "late": float(np.mean(late))}, "memory_growth_fraction": float(np.mean(late) / np.mean(early) - 1)}


if __name__ == "__main__":
    main()
