"""What the benchmarks of serving share: engines and servers as child processes that can be paused, load tests, limits of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from common import ROOT

from colossus.serve.load.client import Endpoint
from colossus.serve.load.errors import ServerError
from colossus.serve.load.run import Load, Order, run
from colossus.serve.load.server import connections, find_server
from colossus.serve.load.workload import Lengths, make_asks, numbered
from colossus.spec.load import LoadPoint

_START_S, _END_S, _CALL_S = 900.0, 30.0, 1800.0
_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks" / "peers")]),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


# Told to end, we end our children first.
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


class Failed(Exception):
    """An engine did not start or broke off; in its own last words."""


class Child:
    """A process group that stands still while others are measured."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, **_ENVIRONMENT, **(environment or {})},
            start_new_session=True,
        )

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def last_words(self) -> str:
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), 3000, max(0, size - 3000)).decode(errors="replace").strip()

    def end(self) -> None:
        """In order, else at once; its whole group."""
        self.resume()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            if stream is not None:
                stream.close()

    def read_line(self, timeout_s: float) -> dict[str, Any]:
        """The next line of JSON; Failed when it ends first or takes too long."""
        assert self.process.stdout is not None
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self.process.stdout.readline)
            try:
                line = waiting.result(timeout_s)
            except TimeoutError:
                self.process.kill()
                raise Failed(f"{self.name}: nothing within {timeout_s:g} s\n{self.last_words()}") from None
        if not line:
            raise Failed(f"{self.name} ended\n{self.last_words()}")
        found: dict[str, Any] = json.loads(line)
        return found


class Offline:
    """An engine behind ``peers/lines.py``."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.child = Child(name, command, environment)
        self.child.read_line(_START_S)

    def play(self, concurrency: int, prompt_tokens: int, output_tokens: int, seed: int) -> float:
        """Output tokens a second, prompts included in the time."""
        order = {"concurrency": concurrency, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens, "seed": seed}
        self.child.resume()
        assert self.child.process.stdin is not None
        self.child.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.child.process.stdin.flush()
        told = self.child.read_line(_CALL_S)
        self.child.pause()
        assert told["tokens"] == concurrency * output_tokens, f"{self.child.name}: {told['tokens']} tokens"
        return float(told["tokens"] / told["wall_s"])


class Served:
    """A server of any kind, waited for until it answers."""

    def __init__(self, name: str, command: Callable[[int], Sequence[str]], environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        began_s = time.monotonic()
        self.child = Child(name, command(self.port), environment)
        self.url = f"http://127.0.0.1:{self.port}"
        try:
            self._wait()
        except BaseException:
            self.child.end()
            raise
        self.start_s = time.monotonic() - began_s

    def _wait(self) -> None:
        async def until_ready() -> None:
            async with connections() as session:
                while True:
                    if self.child.process.poll() is not None:
                        raise Failed(f"{self.child.name} ended\n{self.child.last_words()}")
                    with contextlib.suppress(aiohttp.ClientError, OSError, ServerError):
                        server = await find_server(session, self.url, None)
                        body = {"model": server.model, "prompt": "a", "max_tokens": 1}
                        async with session.post(f"{self.url}/v1/completions", json=body) as response:
                            if response.status == 200:
                                return
                    await asyncio.sleep(0.2)

        asyncio.run(asyncio.wait_for(until_ready(), _START_S))

    def play(self, concurrency: int, prompt_tokens: int, output_tokens: int, seed: int, **more: Any) -> LoadPoint:
        """One closed burst: as many requests as clients, unless ``num_requests`` says more."""
        self.child.resume()
        point = load(self.url, concurrency, prompt_tokens, output_tokens, seed, **more)
        self.child.pause()
        return point


def load(url: str, concurrency: int, prompt_tokens: int, output_tokens: int, seed: int, *, num_requests: int | None = None, warmup: int = 1) -> LoadPoint:
    """A closed loop by the code of ``colossus bench``."""
    asks = numbered(make_asks(Lengths(prompt_tokens=prompt_tokens, output_tokens=output_tokens), num_requests or concurrency, seed), seed * 1_000_000)
    one = Load(label=f"{concurrency} clients", asks=asks, num_clients=concurrency)
    order = Order(url=url, loads=[one], workload="", endpoint=Endpoint.COMPLETIONS, seed=seed, num_warmup_requests=warmup)
    [point] = asyncio.run(run(order, lambda label, ended, total: None)).points
    return point


def ours_command(model: Path | str, port: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "colossus.cli", "serve", str(model), "--port", str(port), "--json", *options]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def limits() -> dict[str, float]:
    """What this machine can do now, with all cores: bytes read from memory and float32 GEMM."""
    cores = len(os.sched_getaffinity(0))
    data = [np.ones(32 << 20, np.float32) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        read_s = best(lambda: list(pool.map(np.sum, data)), 5)
    matrix = np.ones((1536, 1536), np.float32)
    gemm_s = best(lambda: matrix @ matrix, 5)
    return {"read_bytes_per_s": sum(each.nbytes for each in data) / read_s, "gemm_flop_per_s": 2 * 1536**3 / gemm_s}


def best(work: Callable[[], Any], times: int) -> float:
    found = []
    for _ in range(times):
        begin_s = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin_s)
    return min(found)
