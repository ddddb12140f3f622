"""Engines' processes as the door sees them: started, heard over a Unix socket, watched, started again when they end or hang."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from colossus.policy import restart
from colossus.serve.backend import EngineInfo
from colossus.serve.frames import Frames, frame
from colossus.serve.request import EngineStats, Output
from colossus.serve.settings import RouterSettings
from colossus.spec.errors import ColossusError

_WATCH_S = 0.05
_STOP_S = 5.0
_EXIT_S = 2.0  # between a process's last word and its end


class Process(Protocol):
    """An engine's process."""

    @property
    def pid(self) -> int: ...

    @property
    def exit_code(self) -> int | None:
        """None while it lives; minus the signal's number where one killed it."""
        ...

    def kill(self) -> None:
        """SIGKILL to it and all its children; does not wait for their end; harmless when it is gone."""
        ...

    def last_words(self) -> str:
        """The end of its log."""
        ...


class Launcher(Protocol):
    """How an engine's process comes to be; see ``engine.replicas``."""

    def start(self, index: int, generation: int, socket: Path) -> Process:
        """Starts the program that will connect to ``socket`` and say hello with these numbers; returns at once."""
        ...


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"  # to be started again
    FAILED = "failed"  # given up
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How an engine was lost. ``crashed``: by its own doing (an error, a hang), not by a signal from outside."""

    words: str
    crashed: bool
    permanent: bool = False


class Listener(Protocol):
    """What the router does with news."""

    def on_ready(self, replica: Replica) -> None: ...

    def on_outputs(self, replica: Replica, outputs: list[Output]) -> None: ...

    def on_lost(self, replica: Replica, loss: Loss) -> None:
        """Its requests are gone; ``replica.state`` says whether it comes back."""
        ...


@dataclass(eq=False, kw_only=True)
class Replica:
    """One place for an engine, whatever process holds it. ``num_work``: requests it was given; the router counts them."""

    index: int
    state: State = State.STARTING
    generation: int = 0
    process: Process | None = None
    line: Line | None = None
    info: EngineInfo | None = None
    stats: EngineStats | None = None
    text: str = ""  # what it does, or why it was lost, in words
    num_work: int = 0
    num_losses: int = 0
    num_failed_starts: int = 0
    has_served: bool = False
    heard_s: float = 0.0
    started_s: float = 0.0
    restart_s: float = 0.0
    failure: Loss | None = None  # as its process said itself
    past: dict[str, float] = field(default_factory=dict)  # counts of processes that are gone

    @property
    def is_ready(self) -> bool:
        return self.state is State.READY

    def note_work(self, num_requests: int) -> None:
        """How many requests it has now. One that was idle had nothing to say: its silence counts from here."""
        if self.num_work == 0:
            self.heard_s = time.monotonic()
        self.num_work = num_requests

    def send(self, message: dict[str, Any]) -> None:
        """Gives an order; a process that is gone is noticed by its exit, not here."""
        if self.line is not None:
            self.line.send(message)


class Line(asyncio.Protocol):
    """One connection of an engine's process."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self.replica: Replica | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._fleet.hear(self, message)
        except (ColossusError, KeyError, TypeError, ValueError) as error:
            self._fleet.complain(self, f"sent what is not our protocol: {error!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fleet.hang_up(self)

    def send(self, message: dict[str, Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Fleet:
    """All replicas: ``start``, then news go to the listener until ``stop``, which leaves no process behind."""

    def __init__(self, launcher: Launcher, settings: RouterSettings, *, say: Callable[[str], None] = lambda text: None) -> None:
        self._launcher = launcher
        self._settings = settings
        self._say = say
        self._listener: Listener | None = None
        self._folder: Path | None = None
        self._server: asyncio.Server | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = False
        self.replicas = [Replica(index=index) for index in range(settings.num_replicas)]
        self.changed = asyncio.Event()  # set whenever a state changes

    @property
    def ready(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.state is State.READY]

    @property
    def failure(self) -> str | None:
        """In words, once every replica is given up."""
        if all(replica.state is State.FAILED for replica in self.replicas):
            return self.replicas[0].text
        return None

    async def start(self, listener: Listener) -> None:
        """Listens and starts all processes; does not wait until they are ready."""
        self._listener = listener
        self._folder = Path(tempfile.mkdtemp(prefix="colossus-"))  # short, and ours alone: a socket's path holds 107 bytes
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: Line(self), str(self._folder / "door"))
        for replica in self.replicas:
            self._launch(replica)
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self, at_once: Callable[[], bool] = lambda: False) -> None:
        """Asks the processes to stop, and kills those that do not, or all as soon as ``at_once`` says so."""
        self._stopping = True
        if self._watcher is not None:
            self._watcher.cancel()
        asked = self.ready  # one that still starts has nothing to put in order, and does not listen
        for replica in asked:
            replica.send({"kind": "stop"})
        await _until_gone(asked, _STOP_S, at_once)
        for replica in self.replicas:
            replica.state = State.STOPPED
            if replica.process is not None:
                replica.process.kill()
            if replica.line is not None:
                replica.line.close()
        await _until_gone(self.replicas, _STOP_S)
        if self._server is not None:
            self._server.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # What processes say

    def hear(self, line: Line, message: dict[str, Any]) -> None:
        """One message of one process."""
        if message["kind"] == "hello":
            self._greet(line, message)
            return
        replica = line.replica
        if replica is None or replica.line is not line:
            return  # of a process that was given up
        replica.heard_s = time.monotonic()
        match message["kind"]:
            case "outputs":
                assert self._listener is not None
                self._listener.on_outputs(replica, [Output.from_wire(output) for output in message["outputs"]])
            case "stats":
                replica.stats = EngineStats(**message["stats"])
            case "progress":
                replica.text = str(message["text"])
                self._say(f"engine {replica.index}: {replica.text}")
            case "ready":
                self._enter(replica, EngineInfo(**message["info"]))
            case "failed":
                replica.failure = Loss(words=str(message["error"]), crashed=True, permanent=bool(message.get("permanent", False)))

    def complain(self, line: Line, words: str) -> None:
        """A process that does not keep to the protocol cannot be trusted with requests."""
        line.close()
        if line.replica is not None and line.replica.process is not None:
            line.replica.failure = Loss(words=words, crashed=True)
            line.replica.process.kill()

    def hang_up(self, line: Line) -> None:
        """The connection is closed: the process has ended, or will in a moment."""
        if line.replica is not None and line.replica.line is line:
            line.replica.line, line.replica.heard_s = None, time.monotonic()

    def _greet(self, line: Line, message: dict[str, Any]) -> None:
        index, generation = message["index"], message["generation"]
        replica = self.replicas[index] if 0 <= index < len(self.replicas) else None
        if replica is None or replica.generation != generation or replica.state is not State.STARTING:
            line.close()
            return
        replica.line, line.replica = line, replica
        replica.heard_s = time.monotonic()

    def _enter(self, replica: Replica, info: EngineInfo) -> None:
        replica.info, replica.state = info, State.READY
        replica.has_served, replica.num_failed_starts = True, 0
        replica.text = ""
        num_tokens = (info.num_pages - 1) * info.page_tokens  # one page is nobody's
        self._say(f"engine {replica.index} is ready: its KV cache holds {num_tokens:,} tokens in {info.cache_bytes / 2**30:.3g} GiB")
        assert self._listener is not None
        self._listener.on_ready(replica)
        self.changed.set()

    # Watching

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            for replica in self.replicas:
                self._look(replica)

    def _look(self, replica: Replica) -> None:
        now = time.monotonic()
        if replica.state is State.WAITING:
            if now >= replica.restart_s and not _lives(replica):
                self._launch(replica)
            return
        if replica.process is None or replica.state not in (State.STARTING, State.READY):
            return
        code = replica.process.exit_code
        if code is not None:
            self._lose(replica, replica.failure or _exited(replica.process, code))
        elif (silent := self._silence(replica, now)) is not None:
            self._end(replica, Loss(words=silent, crashed=True))
        elif replica.line is None and replica.state is State.READY and now - replica.heard_s > _EXIT_S:
            self._end(replica, replica.failure or Loss(words="it closed its line to the door and lived on", crashed=True))

    def _end(self, replica: Replica, loss: Loss) -> None:
        """Kills its process. Its place is filled again once the process is gone, with what it held of the machine."""
        assert replica.process is not None
        replica.process.kill()
        self._lose(replica, loss)

    def _silence(self, replica: Replica, now: float) -> str | None:
        limit_s = self._settings.start_silence_s if replica.state is State.STARTING else self._settings.hang_s
        busy = replica.state is State.STARTING or replica.num_work > 0
        silent_s = now - replica.heard_s
        return f"it said nothing for {silent_s:.0f} s while it had work (limit {limit_s:g} s)" if busy and silent_s > limit_s else None

    def _lose(self, replica: Replica, loss: Loss) -> None:
        was_ready = replica.state is State.READY
        _keep_counts(replica)
        replica.num_losses += 1
        replica.num_failed_starts = 0 if was_ready else replica.num_failed_starts + 1
        state = restart.LostState(num_failed_starts=replica.num_failed_starts, has_served=replica.has_served, permanent=loss.permanent)
        decision = restart.decide(state)
        replica.text = loss.words
        if decision.delay_s is None:
            replica.state = State.FAILED
            if self.failure is None:  # else it is what the door ends with
                self._say(f"engine {replica.index} is given up: {loss.words}")
        else:
            replica.state, replica.restart_s = State.WAITING, time.monotonic() + decision.delay_s
            self._say(f"engine {replica.index} was lost and starts again: {loss.words.splitlines()[0]}")
        if replica.line is not None:
            replica.line.close()
            replica.line = None
        assert self._listener is not None
        self._listener.on_lost(replica, loss)
        self.changed.set()
        self._look(replica)

    def _launch(self, replica: Replica) -> None:
        if self._stopping:
            return
        assert self._folder is not None
        replica.generation += 1
        replica.state, replica.failure, replica.line = State.STARTING, None, None
        replica.started_s = replica.heard_s = time.monotonic()
        try:
            replica.process = self._launcher.start(replica.index, replica.generation, self._folder / "door")
        except OSError as error:  # no more processes, memory or open files: perhaps later
            replica.process = None
            self._lose(replica, Loss(words=f"its process could not be started: {error}", crashed=False))


async def _until_gone(replicas: Sequence[Replica], limit_s: float, at_once: Callable[[], bool] = lambda: False) -> None:
    """Until their processes have ended, or the time is over, or ``at_once``."""
    deadline = time.monotonic() + limit_s
    while any(map(_lives, replicas)) and time.monotonic() < deadline and not at_once():
        await asyncio.sleep(_WATCH_S)


def _lives(replica: Replica) -> bool:
    return replica.process is not None and replica.process.exit_code is None


_COUNTS = (
    *("num_steps", "num_prompt_tokens", "num_cached_tokens", "num_output_tokens", "num_preemptions"),
    *("num_drafted_tokens", "num_accepted_tokens", "num_compilations", "busy_s"),
)


def _keep_counts(replica: Replica) -> None:
    """What the lost process had counted, as last heard; counters must not go back."""
    if replica.stats is not None:
        for name in _COUNTS:
            replica.past[name] = replica.past.get(name, 0) + getattr(replica.stats, name)
    replica.stats = None


def totals(replica: Replica) -> dict[str, float]:
    """Counts since the door's start, over all processes of a replica."""
    now = replica.stats
    return {name: replica.past.get(name, 0) + (getattr(now, name) if now is not None else 0) for name in _COUNTS}


def _exited(process: Process, code: int) -> Loss:
    """SIGKILL, SIGTERM and SIGINT come from outside (or from a system short of memory); other ends are the program's own."""
    words = f"its process was ended by signal {-code}" if code < 0 else f"its process ended with code {code}"
    if code == -9:
        words += ", perhaps because memory ran out (a smaller --kv-gib needs less)"
    tail = ""
    with contextlib.suppress(OSError):
        tail = process.last_words()
    crashed = code not in (-9, -15, -2)
    return Loss(words=f"{words}\n{tail}" if tail and crashed else words, crashed=crashed)
