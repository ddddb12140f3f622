"""Several processes as one engine: each holds its devices' part of the model, and all run the same programs in the same order.

The leader is the engine's process. It schedules, and tells its followers each step's packed inputs before it runs the step
itself; the devices' collectives do the rest. A follower is ``python -m colossus.serve.gang RANK SOCKET``, started by the leader
on its machine. A gang lives and dies together: the leader's end ends the followers, and a follower's end ends the leader with
words, after which the replica is started again as any other.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import jax
import numpy as np

from colossus.nn.paged import PagedDecoder, make_decoder, tp_mesh
from colossus.serve.frames import RECEIVE_BYTES, Frames, frame
from colossus.serve.options import EngineOptions
from colossus.serve.programs import Outputs, Programs
from colossus.serve.settings import options_from_json, options_to_json
from colossus.serve.shapes import Key, Kind
from colossus.serve.worker import die_with_parent
from colossus.spec.errors import EngineError, Problem, SpecError

PROGRAM = ("-m", "colossus.serve.gang")
EXIT_LOST = 5  # a process of the gang is gone
_MEET_S = 120.0
_HEARTBEAT_S = 30


class Gang:
    """The leader's end: its followers, and a line to each. Made before JAX looks for devices."""

    def __init__(self, options: EngineOptions, *, program: Sequence[str] = PROGRAM) -> None:
        _check(options)
        self._folder = Path(tempfile.mkdtemp(prefix="colossus-gang-"))  # for this user alone
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        self._followers: list[subprocess.Popen[bytes]] = []
        self._lines: list[_Line] = []
        self._closing = False
        self._start(options, program)

    def _start(self, options: EngineOptions, program: Sequence[str]) -> None:
        coordinator, size = f"127.0.0.1:{_free_port()}", options.processes
        begin = {"kind": "begin", "coordinator": coordinator, "options": options_to_json(options)}
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            path = self._folder / "gang.sock"
            server.bind(str(path))
            server.listen(size)
            server.settimeout(_MEET_S)
            for rank in range(1, size):
                self._followers.append(subprocess.Popen([sys.executable, *program, str(rank), str(path)], stdin=subprocess.DEVNULL))
            lines = dict(self._meet(server) for _ in self._followers)
        shutil.rmtree(self._folder, ignore_errors=True)  # all have met: nobody needs its name, and not every end would clear it away
        self._lines = [lines[rank] for rank in sorted(lines)]
        self.tell(begin)
        _join(coordinator, size, 0, options)
        atexit.register(self.close)  # before JAX's own, in which all members wait for each other
        threading.Thread(target=self._watch, name="gang", daemon=True).start()

    def _meet(self, server: socket.socket) -> tuple[int, _Line]:
        try:
            line = _Line(server.accept()[0])
        except TimeoutError:
            raise EngineError(f"the processes of the gang did not start within {_MEET_S:.0f} s: {self._words()}") from None
        return int(line.hear()["rank"]), line

    def tell(self, message: dict[str, Any]) -> None:
        """One message to all followers."""
        data = frame(message)
        for line in self._lines:
            line.send(data)

    def wait(self) -> None:
        """Until all followers have done what they were told, since a collective waits for its last member 30 s at most."""
        for line in self._lines:
            line.hear()

    def leading(self, programs: Programs, *, num_pages: int, num_slots: int) -> LeadingPrograms:
        """These programs, run by all."""
        self.tell({"kind": "programs", "num_pages": num_pages, "num_slots": num_slots})
        self.wait()
        return LeadingPrograms(self, programs)

    def close(self) -> None:
        """Lets the followers end as this process does. One that ends at once need not: they notice."""
        self._closing = True
        self.tell({"kind": "end"})

    def _watch(self) -> None:
        """Ends this process with the first follower, also where the main thread waits for it in a collective."""
        poller = select.poll()
        for line in self._lines:
            poller.register(line.socket, getattr(select, "POLLRDHUP", 0) | select.POLLHUP)
        poller.poll()
        if self._closing:
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"this engine's other processes: {self._words()}\n")
            sys.stderr.flush()
        os._exit(EXIT_LOST)

    def _words(self) -> str:
        """How each follower is."""
        for follower in self._followers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                follower.wait(0.5)
        return ", ".join(f"process {rank} {_how(follower.returncode)}" for rank, follower in enumerate(self._followers, 1))


class LeadingPrograms:
    """``Programs`` of the leader: what it does, its followers do."""

    def __init__(self, gang: Gang, own: Programs) -> None:
        self._gang = gang
        self._own = own

    @property
    def num_compiled(self) -> int:
        return self._own.num_compiled

    def compile(self, keys: Sequence[Key], progress: Callable[[int, Key], None]) -> None:
        """See ``Programs``."""
        self._gang.tell({"kind": "compile", "keys": [astuple(key) for key in keys]})
        self._own.compile(keys, progress)
        self._gang.wait()

    def run(self, key: Key, ints: np.ndarray, floats: np.ndarray, masks: np.ndarray | None = None) -> Outputs:
        """See ``Programs``."""
        inputs = {"ints": ints.tobytes(), "floats": floats.tobytes(), "masks": None if masks is None else masks.tobytes()}
        self._gang.tell({"kind": "run", "key": astuple(key), **inputs})
        return self._own.run(key, ints, floats, masks)

    def enter(self, slot: int, prompt: np.ndarray, answer: np.ndarray, biases: dict[int, float]) -> None:
        """See ``Programs``."""
        texts = [np.asarray(tokens, np.int32).tobytes() for tokens in (prompt, answer)]
        self._gang.tell({"kind": "enter", "slot": int(slot), "texts": texts, "biases": biases})
        self._own.enter(slot, prompt, answer, biases)


class _Line:
    """One end of the socket between the leader and a follower."""

    def __init__(self, line: socket.socket) -> None:
        line.settimeout(None)
        self.socket = line
        self._frames = Frames()
        self._heard: list[dict[str, Any]] = []

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # who watches the line sees the end
            self.socket.sendall(data)

    def hear(self) -> dict[str, Any]:
        """The next message. Raises EngineError where there will be none."""
        while not self._heard:
            data = self.socket.recv(RECEIVE_BYTES)
            if not data:
                raise EngineError("a process of the gang is gone")
            self._heard = self._frames.feed(data)
        return self._heard.pop(0)


def follow(rank: int, path: str, open_model: Callable[[Path], Any]) -> None:
    """A follower's life: until the leader is gone."""
    die_with_parent()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    line = _Line(connection)
    line.send(frame({"kind": "hello", "rank": rank}))
    begin = line.hear()
    threading.Thread(target=_end_with_leader, args=(connection,), daemon=True).start()
    options = options_from_json(begin["options"])
    _join(begin["coordinator"], options.processes, rank, options)
    model = open_model(options.model)
    mesh = tp_mesh(model.card, options.tp)
    decoder = make_decoder(model.load_params(), model.card, weights=options.weights, cache=options.cache, mesh=mesh)
    _obey(line, decoder)


def _obey(line: _Line, decoder: PagedDecoder) -> None:
    message = line.hear()
    programs = Programs(decoder, num_pages=message["num_pages"], num_slots=message["num_slots"])
    line.send(frame({"kind": "done"}))
    while True:
        message = line.hear()
        match message["kind"]:
            case "compile":
                programs.compile([_key(key) for key in message["keys"]], lambda *_: None)
                line.send(frame({"kind": "done"}))
            case "run":
                key, masks = _key(message["key"]), message["masks"]
                ints, floats = np.frombuffer(message["ints"], np.int32), np.frombuffer(message["floats"], np.float32)
                programs.run(key, ints, floats, None if masks is None else np.frombuffer(masks, np.uint32).reshape(key.num_rows, -1))
            case "enter":
                prompt, answer = (np.frombuffer(text, np.int32) for text in message["texts"])
                programs.enter(message["slot"], prompt, answer, message["biases"])
            case "end":
                return


def _key(values: list[int]) -> Key:
    return Key(Kind(values[0]), *values[1:])


def _end_with_leader(connection: socket.socket) -> None:
    poller = select.poll()
    poller.register(connection, getattr(select, "POLLRDHUP", 0) | select.POLLHUP)
    poller.poll()
    os._exit(0)


def _join(coordinator: str, size: int, rank: int, options: EngineOptions) -> None:
    """This process's place among the gang's devices, each process with equally many; before JAX looks for any."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    each = options.tp // size
    on_cpu = getattr(jax.config, "jax_platforms", None) == "cpu"  # asking for devices would make the backend
    own = None if on_cpu else list(range(rank * each, (rank + 1) * each))
    jax.distributed.initialize(coordinator, size, rank, local_device_ids=own, initialization_timeout=int(_MEET_S), heartbeat_timeout_seconds=_HEARTBEAT_S)


def _check(options: EngineOptions) -> None:
    if options.tp % options.processes:
        rule = f"must be a multiple of the {options.processes} processes"
        raise SpecError("engine", [Problem(path="tp", value=str(options.tp), rule=rule, hint=f"tp {options.processes}")])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _how(code: int | None) -> str:
    if code is None:
        return "lives"
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def main(arguments: list[str]) -> None:
    from colossus.serve.model import open_model

    rank, path = arguments
    follow(int(rank), path, open_model)


if __name__ == "__main__":
    main(sys.argv[1:])
