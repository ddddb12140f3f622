"""The line between a worker and its supervisor: JSON messages over a socket that both inherit.

Worker to supervisor: {"say": "phase", ...}, "beat", "step", "busy", "peer_failure", "failed", "ended".
Supervisor to worker: {"do": "join", ...}, "reform", "stop". A line that closes means the other side is gone: a worker
without its supervisor ends at once, whatever it is doing.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# Exit codes of a worker, read by the supervisor.
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_PERMANENT = 2
EXIT_ORPHAN = 76

_BEAT_S = 0.5


class Control:
    """A worker's end. ``on_stop`` and ``on_reform`` run in the reading thread, also while the main thread is blocked."""

    def __init__(self, descriptor: int, parent: int, *, on_stop: Callable[[], None], on_reform: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._lock = threading.Lock()
        self._orders: queue.Queue[dict[str, Any]] = queue.Queue()
        self._on_stop = on_stop
        self._on_reform = on_reform
        self.attempt: int | None = None  # the gang that what is said belongs to
        die_with(parent)
        threading.Thread(target=self._read, daemon=True, name="control").start()
        threading.Thread(target=self._beat, daemon=True, name="beat").start()

    def say(self, what: str, **fields: Any) -> None:
        line = json.dumps({"say": what, "time_s": time.time(), "attempt": self.attempt, **fields}) + "\n"
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(line.encode())

    @property
    def has_order(self) -> bool:
        """Whether an order waits already; a standby has none for a while."""
        return not self._orders.empty()

    def next_order(self) -> dict[str, Any]:
        """Waits for the supervisor's next join or reform."""
        return self._orders.get()

    def _read(self) -> None:
        with self._socket.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                self._obey(json.loads(line))
        os._exit(EXIT_ORPHAN)

    def _obey(self, order: dict[str, Any]) -> None:
        if order["do"] == "stop":
            self._on_stop()
            return
        if order["do"] == "reform":
            self._on_reform()
        self._orders.put(order)

    def _beat(self) -> None:
        while True:
            self.say("beat")
            time.sleep(_BEAT_S)


def die_with(parent: int) -> None:
    """Asks Linux to kill this process when its parent dies, even while it is stopped; elsewhere the closed line serves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the call
            os._exit(EXIT_ORPHAN)
