"""An engine's process: ``python -m colossus.serve.worker SOCKET INDEX GENERATION OPTIONS_JSON``, started by ``engine.replicas``.

One thread steps the engine and talks to the door between steps; a second one only waits for the door's end of the line to close,
and ends the process then: no engine outlives its door.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import asdict
from typing import Any

import psutil

from colossus.serve.frames import RECEIVE_BYTES, Frames, frame
from colossus.serve.request import Request
from colossus.serve.settings import options_from_json
from colossus.spec.errors import ColossusError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_PERMANENT = 3
EXIT_ALONE = 4  # the door is gone
_STATS_EVERY_S = 0.25
_PR_SET_PDEATHSIG = 1


class Gone(Exception):
    """The door closed the line."""


class Line:
    """The worker's end of the socket. The process ends with the door's."""

    def __init__(self, path: str) -> None:
        die_with_parent()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._frames = Frames()
        threading.Thread(target=self._watch, name="door", daemon=True).start()

    def say(self, kind: str, **fields: Any) -> None:
        try:
            self._socket.sendall(frame({"kind": kind, **fields}))
        except OSError as error:
            raise Gone from error

    def hear(self, *, wait: bool) -> list[dict[str, Any]]:
        """What the door said since the last call; with ``wait``, not before it said something."""
        try:
            data = self._socket.recv(RECEIVE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as error:
            raise Gone from error
        if not data:
            raise Gone
        return self._frames.feed(data)

    def _watch(self) -> None:
        """Ends the process with the door, also within a long step or compilation."""
        poller = select.poll()
        poller.register(self._socket, getattr(select, "POLLRDHUP", 0) | select.POLLHUP)
        poller.poll()
        os._exit(EXIT_ALONE)


class Worker:
    """The engine and its line."""

    def __init__(self, line: Line, engine: Any) -> None:
        self._line = line
        self._engine = engine
        self._stats_s = 0.0
        self._was_busy = True
        self._stopping = False

    def run(self) -> None:
        """Until the door says stop."""
        while not self._stopping:
            busy = self._engine.has_work
            self._tell_stats(busy)
            for message in self._line.hear(wait=not busy):
                self._obey(message)
            if self._engine.has_work:
                outputs = self._engine.step()
                if outputs:
                    self._line.say("outputs", outputs=[output.to_wire() for output in outputs])

    def _obey(self, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "add":
                self._engine.add(Request.from_wire(message["request"]))
            case "abort":
                self._engine.abort(message["id"])
            case "reset_prefix_cache":
                self._engine.reset_prefix_cache()
            case "stop":
                self._stopping = True

    def _tell_stats(self, busy: bool) -> None:
        """Four times a second, and once more when the work is done."""
        now = time.monotonic()
        if now - self._stats_s >= _STATS_EVERY_S or (self._was_busy and not busy):
            self._stats_s = now
            self._line.say("stats", stats=asdict(self._engine.stats()))
        self._was_busy = busy


def main(arguments: list[str]) -> int:
    """The process's exit code."""
    path, index, generation, options = arguments
    try:
        line = Line(path)
        line.say("hello", index=int(index), generation=int(generation), pid=os.getpid())
    except (OSError, Gone):
        return EXIT_ALONE
    try:
        _serve(line, options)
    except Gone:
        return EXIT_ALONE
    except Exception as error:
        return _fail(line, error)
    return EXIT_DONE


def _serve(line: Line, options_json: str) -> None:
    line.say("progress", text="opening the model")
    from colossus.serve.engine import Engine
    from colossus.serve.model import open_model

    options = options_from_json(options_json)
    engine = Engine(open_model(options.model), options)
    engine.warm_up(lambda text: line.say("progress", text=text))
    gc.collect()
    gc.freeze()  # what lives from here on to the end need not be looked through again and again
    info = asdict(engine.info()) | {"start_s": time.time() - psutil.Process().create_time()}
    line.say("ready", info=info)
    Worker(line, engine).run()


def _fail(line: Line, error: Exception) -> int:
    permanent = isinstance(error, ColossusError)
    text = str(error) if permanent else f"{type(error).__name__}: {error}"
    hint = f"\nhint: {error.hint}" if isinstance(error, ColossusError) and error.hint else ""
    with contextlib.suppress(OSError):
        traceback.print_exc()
    with contextlib.suppress(Gone):
        line.say("failed", error=text[:2000] + hint, permanent=permanent)
    return EXIT_PERMANENT if permanent else EXIT_FAILED


def die_with_parent() -> None:
    """Linux ends us with the thread that started us, even where a debugger or SIGSTOP holds our own watcher."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # native threads must not delay the exit
