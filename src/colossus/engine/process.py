"""One worker process as its supervisor sees it: its pid, its line, what it last said."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from colossus.engine.machine import usable_cores

# XLA's CPU runtime allocates a step's temporaries anew each time. In huge pages that the process keeps, instead of small
# ones that the kernel clears for every step, a step of a 14 M Llama takes 6 % less time (LAB.md). Only glibc reads this.
CPU_MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
# With an arena a thread, large blocks of all threads but the first go back to the system at once, whatever the threshold, and each step
# faults them anew: 1.1 GB at 14 M, 0.1 to 0.8 s of 1.8 s. In one arena they stay, at up to twice the memory (LAB.md).
_ONE_ARENA = "glibc.malloc.arena_max=1:"


def worker_environment(kind: str, *, is_roomy: bool = True) -> dict[str, str]:
    """What workers on a ``kind`` of chip see beside our own environment: the platform named (no probing), quiet native logs, cached bytecode.

    ``is_roomy``: there is memory to spare, so that they may keep what a step used.
    """
    platforms = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}[kind]
    quiet = {"JAX_PLATFORMS": platforms, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONDONTWRITEBYTECODE": ""}
    if kind != "cpu" or "GLIBC_TUNABLES" in os.environ:
        return quiet
    return quiet | {"GLIBC_TUNABLES": (_ONE_ARENA if is_roomy else "") + CPU_MALLOC}


def _unused(folder: Path, number: int) -> Path:
    """The log of the ``number``-th worker; one that a session before has written is not written over."""
    names = (f"worker-{number}{suffix}.log" for suffix in ("", *(f"-{again}" for again in range(2, 10_000))))
    return next(folder / name for name in names if not (folder / name).exists())


@dataclass
class Worker:
    """``rank`` is None while it stands by. Times are the monotonic clock of the supervisor."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    log: Path
    started_s: float
    rank: int | None = None
    ready: bool = False
    waiting: bool = False
    step: int = 0
    phase: str = "starting"
    last_beat_s: float = 0.0
    last_progress_s: float = 0.0
    step_s: float = 0.0
    failure: dict[str, Any] | None = None
    _rest: bytes = field(default=b"", repr=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, order: dict[str, Any]) -> None:
        """Gives an order; a worker that is gone is noticed by its exit, not here."""
        with contextlib.suppress(OSError):
            self.line.sendall((json.dumps(order) + "\n").encode())

    def messages(self) -> list[dict[str, Any]]:
        """What it said since the last call."""
        try:
            data = self.line.recv(1 << 16)
        except (BlockingIOError, ConnectionError):
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.line.close()

    def is_stopped(self) -> bool:
        """Whether the system holds it (SIGSTOP, a debugger), so that it cannot even beat."""
        try:
            return psutil.Process(self.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        except psutil.Error:
            return False

    def last_words(self, num_lines: int = 12) -> str:
        """The end of its log, without the noise that XLA writes on the way down."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(line[:300] for line in lines[-num_lines:])


class Engine(Protocol):
    """Where workers run. ``start`` returns at once; the worker says when it is ready."""

    def start(self, number: int) -> Worker: ...

    def cores(self, rank: int, num_workers: int) -> list[int]: ...


class LocalEngine:
    """Workers as child processes of this one, on this machine."""

    def __init__(self, run_folder: Path, ram_blocks: list[tuple[int, int]], *, environment: dict[str, str] | None = None) -> None:
        self._run_folder = run_folder
        self._blocks = ram_blocks
        self._environment = environment or {}
        self._logs = run_folder / "logs"
        self._logs.mkdir(exist_ok=True)

    def start(self, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        log = _unused(self._logs, number)
        blocks = ";".join(f"{a},{b}" for a, b in self._blocks)
        command = [sys.executable, "-m", "colossus.train.worker", str(self._run_folder), str(theirs.fileno()), str(os.getpid()), blocks]
        with log.open("wb") as output, theirs:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno(), *(descriptor for pair in self._blocks for descriptor in pair)],
                start_new_session=True,  # the terminal's Ctrl-C is for the supervisor alone
                env=os.environ | self._environment,
            )
        ours.setblocking(False)
        now = time.monotonic()
        return Worker(process=process, line=ours, log=log, started_s=now, last_beat_s=now, last_progress_s=now)

    def cores(self, rank: int, num_workers: int) -> list[int]:
        return share_of_cores(rank, num_workers)


def share_of_cores(rank: int, num_workers: int) -> list[int]:
    """The cores of one rank: an equal share each, so that no two workers' threads fight for one core."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    available = usable_cores()
    share = len(available) // num_workers
    return available[rank * share : (rank + 1) * share] if share else []
