"""Workers as their supervisor sees them, and the engines that they run in: how they start and die, and what time it is."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from colossus.engine.coordination import CoordinationService
from colossus.engine.machine import usable_cores

_TICK_S = 0.05

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


class Worker(Protocol):
    """What every engine's workers have. ``rank`` is None while it stands by. Times are the engine's clock."""

    started_s: float
    rank: int | None
    ready: bool
    waiting: bool
    step: int
    phase: str
    last_beat_s: float
    last_progress_s: float
    step_s: float
    failure: dict[str, Any] | None

    @property
    def pid(self) -> int: ...

    @property
    def exit_code(self) -> int | None:
        """None while it lives; minus the signal's number where one killed it."""
        ...

    def send(self, order: dict[str, Any]) -> None:
        """Gives an order; a worker that is gone is noticed by its exit, not here."""
        ...

    def messages(self) -> list[dict[str, Any]]:
        """What it said since the last call. One with ``all`` speaks for every rank of its gang."""
        ...

    def strike(self) -> None:
        """SIGKILL, on purpose; its exit is news like any other."""
        ...

    def is_stopped(self) -> bool:
        """Whether the system holds it (SIGSTOP, a debugger), so that it cannot even beat."""
        ...

    def last_words(self, num_lines: int = 12) -> str:
        """The end of its log, without the noise that XLA writes on the way down."""
        ...


@dataclass(eq=False, kw_only=True)
class LocalWorker:
    """A child process, with a line to it."""

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

    @property
    def exit_code(self) -> int | None:
        return self.process.poll()

    def send(self, order: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.line.sendall((json.dumps(order) + "\n").encode())

    def messages(self) -> list[dict[str, Any]]:
        try:
            data = self.line.recv(1 << 16)
        except (BlockingIOError, ConnectionError):
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def strike(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.line.close()

    def is_stopped(self) -> bool:
        try:
            return psutil.Process(self.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        except psutil.Error:
            return False

    def last_words(self, num_lines: int = 12) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(line[:300] for line in lines[-num_lines:])


class Service(Protocol):
    """Where the members of one gang meet."""

    @property
    def address(self) -> str: ...

    def shutdown(self, *, wait: bool = True) -> None: ...


class Engine(Protocol):
    """Where workers run, and in what time: a real one, or the twin's. ``start`` returns at once; the worker says when it is ready."""

    def now_s(self) -> float:
        """A clock that never goes back."""
        ...

    def wall_s(self) -> float:
        """The time that events carry."""
        ...

    def sleep(self, duration_s: float) -> None: ...

    def wait(self, wake_s: float | None = None) -> Iterable[Worker]:
        """The workers that said something or ended since the last call. Comes back by ``wake_s``, and whenever faults may show that nobody tells."""
        ...

    def silent(self, since_s: float) -> Iterable[Worker]:
        """Living workers of which nothing was heard after ``since_s``; more of them do no harm."""
        ...

    def start(self, number: int) -> Worker: ...

    def dismiss(self, worker: Worker) -> None:
        """Ends a worker and forgets it."""
        ...

    def service(self, num_workers: int, *, port: int | None, heartbeat_timeout_s: float) -> Service: ...

    def cores(self, rank: int, num_workers: int) -> list[int]: ...

    def close(self) -> None: ...


class LocalEngine:
    """Workers as child processes of this one, on this machine."""

    def __init__(self, run_folder: Path, ram_blocks: list[tuple[int, int]], *, environment: dict[str, str] | None = None) -> None:
        self._run_folder = run_folder
        self._blocks = ram_blocks
        self._environment = environment or {}
        self._logs = run_folder / "logs"
        self._logs.mkdir(exist_ok=True)
        self._selector = selectors.DefaultSelector()
        self._living: dict[LocalWorker, None] = {}

    def now_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()

    def sleep(self, duration_s: float) -> None:
        time.sleep(duration_s)

    def wait(self, wake_s: float | None = None) -> list[Worker]:
        """Looks at every process each time: exits are found even where the system tells of none."""
        heard: dict[Worker, None] = {}
        for key, _ in self._selector.select(_TICK_S):
            if isinstance(key.data, LocalWorker):
                heard[key.data] = None
            else:  # a pidfd: its process is gone
                self._selector.unregister(key.fileobj)
                os.close(key.fd)
        for worker in [worker for worker in self._living if worker.exit_code is not None]:
            del self._living[worker]
            heard[worker] = None
            self._forget(worker)
        return list(heard)

    def silent(self, since_s: float) -> list[Worker]:
        return [worker for worker in self._living if worker.last_beat_s < since_s]

    def service(self, num_workers: int, *, port: int | None, heartbeat_timeout_s: float) -> Service:
        return CoordinationService(num_workers, port=port, heartbeat_timeout_s=heartbeat_timeout_s)

    def dismiss(self, worker: Worker) -> None:
        assert isinstance(worker, LocalWorker)
        self._forget(worker)
        self._living.pop(worker, None)
        worker.kill()

    def close(self) -> None:
        self._selector.close()

    def _forget(self, worker: LocalWorker) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(worker.line)

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
        worker = LocalWorker(process=process, line=ours, log=log, started_s=now, last_beat_s=now, last_progress_s=now)
        self._living[worker] = None
        self._selector.register(ours, selectors.EVENT_READ, worker)
        with contextlib.suppress(AttributeError, OSError):  # not on every system; the look at all processes finds exits too
            self._selector.register(os.pidfd_open(worker.pid), selectors.EVENT_READ, None)
        return worker

    def cores(self, rank: int, num_workers: int) -> list[int]:
        return share_of_cores(rank, num_workers)


def share_of_cores(rank: int, num_workers: int) -> list[int]:
    """The cores of one rank: an equal share each, so that no two workers' threads fight for one core."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    available = usable_cores()
    share = len(available) // num_workers
    return available[rank * share : (rank + 1) * share] if share else []
