"""The twin as an engine: the real supervisor's workers and clock, simulated. No process is started and nobody waits.

It has the methods of ``engine.process.Engine``. Between two things that happen the clock jumps; only where a fault shows by nothing being said
does it tick, so that the supervisor finds it in its own time. Events come out in the order (time, sequence): equal faults, equal log.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from colossus.spec.errors import EngineError
from colossus.spec.event import Event
from colossus.twin.gang import Gang
from colossus.twin.script import FAULTS, Script

# (s since the start, rank, one of FAULTS); ranks from the gang's size on are the standbys.
Strike = tuple[float, int, str]
_KILLED, _FAILED, _PERMANENT = -9, 1, 2


class TwinWorker:
    """One simulated worker, with all that ``engine.process.Worker`` has. It lives, hangs or is gone."""

    def __init__(self, engine: TwinEngine, number: int) -> None:
        self.pid = number
        self.started_s = self.last_beat_s = self.last_progress_s = engine.now_s()
        self.rank: int | None = None
        self.ready = self.waiting = False
        self.step = 0
        self.step_s = 0.0
        self.phase = "starting"
        self.failure: dict[str, Any] | None = None
        self.exit_code: int | None = None
        self.is_hung = self.is_imported = self.is_leaving = False
        self.gang: Gang | None = None
        self._engine = engine
        self._said: list[dict[str, Any]] = []

    @property
    def speaks(self) -> bool:
        return self.exit_code is None and not self.is_hung and not self.is_leaving

    def send(self, order: dict[str, Any]) -> None:
        if not self.speaks:
            return
        if order["do"] == "stop":
            if self.gang is not None:
                self.gang.stop_requested = True
            return
        self._engine.join(self, order)

    def messages(self) -> list[dict[str, Any]]:
        said, self._said = self._said, []
        return said

    def say(self, what: str, **fields: Any) -> None:
        self._said.append({"say": what, "attempt": None if self.gang is None else self.gang.attempt, **fields})
        self._engine.news[self] = None

    def strike(self) -> None:
        self._engine.strike(self, "kill")

    def leave(self, code: int) -> None:
        """Its process ends now, and is seen to have ended a moment later."""
        self.is_leaving = True
        self._engine.after(self._engine.script.times.exit_s if code < 0 else 0.0, lambda: self._gone(code))

    def _gone(self, code: int) -> None:
        if self.exit_code is None:
            self.exit_code = code
            self._engine.news[self] = None

    def kill(self) -> None:
        self.exit_code = _KILLED if self.exit_code is None else self.exit_code

    def is_stopped(self) -> bool:
        return False

    def last_words(self, num_lines: int = 12) -> str:
        return ""


class TwinService:
    """A meeting point that is none."""

    def __init__(self, number: int) -> None:
        self.address = f"twin:{number}"

    def shutdown(self, *, wait: bool = True) -> None:
        pass


class TwinEngine:
    """``faults`` in order of time are taken as they come; one for a rank that is not there does nothing. ``on_event``: where what workers write goes.

    ``tick_s``: how often the supervisor looks while a fault can be told by silence alone. ``begin_s``: when the first worker may start.
    """

    def __init__(self, script: Script, on_event: Callable[[Event], None], *, faults: Iterable[Strike] = (), tick_s: float = 0.05, begin_s: float = 0.0) -> None:
        self.script = script
        self.news: dict[TwinWorker, None] = {}
        self.living: dict[TwinWorker, None] = {}
        self.num_started = self.num_dismissed = self.num_faults = self.num_rounds = 0
        self.has_programs = False
        self.evaluated: set[int] = set()
        self.ram_step: int | None = None
        self.disk_step: int | None = None
        self._now_s = self._looked_s = begin_s
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._on_event = on_event
        self._faults = iter(faults)
        self._tick_s = tick_s
        self._gang: Gang | None = None
        self._hung: dict[TwinWorker, None] = {}
        self._watched: Gang | None = None  # broken, though the supervisor may have to find out by waiting
        self._next_fault()

    # The engine's Protocol

    def now_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return self._now_s

    def sleep(self, duration_s: float) -> None:
        end_s = self._now_s + duration_s
        while self._queue and self._queue[0][0] <= end_s:
            self._happen()
        self._now_s = end_s

    def wait(self, wake_s: float | None = None) -> list[TwinWorker]:
        self.num_rounds += 1
        while not self.news or (self._queue and self._queue[0][0] <= self._now_s):  # all of one moment is heard together
            limit_s = self._look_s(wake_s)
            if self._queue and (limit_s is None or self._queue[0][0] <= limit_s):
                self._happen()
            elif limit_s is not None:
                self._now_s = max(self._now_s, limit_s)
                self._looked_s = self._now_s
                break
            else:
                raise EngineError("the twin stands still: nothing more will happen to this gang", hint="a mistake of the supervisor or of the twin; report it")
        if self._gang is not None and not self._gang.is_over:
            self._gang.speak_up(self._now_s)
        heard = list(self.news)
        self.news.clear()
        return heard

    def silent(self, since_s: float) -> list[TwinWorker]:
        return [worker for worker in self._hung if worker.last_beat_s < since_s]

    def start(self, number: int) -> TwinWorker:
        worker = TwinWorker(self, number)
        self.num_started += 1
        self.living[worker] = None
        self.after(self.script.times.import_s, lambda: self._imported(worker))
        return worker

    def dismiss(self, worker: Any) -> None:
        if self.living.pop(worker, self) is not self:
            self.num_dismissed += 1
        self.news.pop(worker, None)
        self._hung.pop(worker, None)
        worker.kill()
        if worker.gang is not None and worker.gang.members.get(worker.rank) is worker:
            self._break(worker.gang)

    def service(self, num_workers: int, *, port: int | None, heartbeat_timeout_s: float) -> TwinService:
        return TwinService(num_workers)

    def cores(self, rank: int, num_workers: int) -> list[int]:
        return []

    def close(self) -> None:
        self._queue.clear()

    # What workers and gangs do

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (time_s, self._sequence, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.at(self._now_s + delay_s, action)

    def tell(self, kind: str, *, at_s: float, scope: dict[str, Any], **payload: Any) -> None:
        self._on_event(Event(time_s=at_s, kind=kind, scope=scope, payload=payload))

    def join(self, worker: TwinWorker, order: dict[str, Any]) -> None:
        """A worker is ordered into the gang of an attempt; the first order makes the gang."""
        gang = self._gang
        if gang is None or gang.attempt != order["attempt"]:
            if gang is not None:
                self._break(gang)
            gang = self._gang = Gang(self, order)
            self._watched = None
        worker.gang = gang
        gang.add(worker, order)

    def live(self, gang: Gang, life: Iterator[float]) -> None:
        """Goes on with a gang's life, as long as it is the one there is and nothing has broken it."""
        if gang.is_over:
            return
        delay_s = next(life, None)
        if delay_s is not None:
            self.after(delay_s, lambda: self.live(gang, life))

    def newest_state(self) -> tuple[int, str]:
        """The step that a gang goes on from, and where it is kept."""
        if self.ram_step is not None and self.ram_step >= (self.disk_step or 0):
            return self.ram_step, "ram"
        return (0, "init") if self.disk_step is None else (self.disk_step, "disk")

    def strike(self, worker: TwinWorker, cause: str) -> None:
        """A fault befalls a worker."""
        if worker.exit_code is not None or worker.is_leaving:
            return
        self.num_faults += 1
        gang = worker.gang
        if gang is not None:
            self._break(gang)  # its last steps are said while all can speak, and their copies made
            if cause in self.script.ram_lost_by:
                self.ram_step = None
        if cause in ("exit", "permanent"):
            worker.say("failed", error=f"simulated: {cause}", hint=None, permanent=cause == "permanent")
        if cause in ("kill", "exit", "permanent"):
            self._hung.pop(worker, None)
            worker.leave({"kill": _KILLED, "exit": _FAILED, "permanent": _PERMANENT}[cause])
        elif cause == "hang":
            worker.is_hung, worker.last_beat_s = True, self._now_s
            self._hung[worker] = None
        elif gang is not None:
            self._watched = gang
        if cause in ("kill", "exit", "permanent", "peer") and gang is not None and gang.has_joined:
            self.after(self.script.times.peer_s, lambda: self._miss_peer(gang))

    # Inside

    def _look_s(self, wake_s: float | None) -> float | None:
        """When the supervisor looks though nobody says anything: as it wishes, and at every tick while a fault can be told by silence alone."""
        if not self._hung and (self._watched is None or self._watched is not self._gang):
            self._looked_s = self._now_s
            return wake_s
        tick_s = self._looked_s + self._tick_s
        return tick_s if wake_s is None else min(wake_s, tick_s)

    def _happen(self) -> None:
        time_s, _, action = heapq.heappop(self._queue)
        self._now_s = max(self._now_s, time_s)
        action()

    def _imported(self, worker: TwinWorker) -> None:
        """Ready to join; one without an order goes on to rehearse, and is ready later."""
        if not worker.speaks:
            return
        rest_s = self.script.times.standby_s - (self._now_s - worker.started_s)
        if worker.gang is None and rest_s > 1e-9:
            self.after(rest_s, lambda: self._imported(worker))
            return
        worker.is_imported = True
        gang, worker.gang = worker.gang, None
        worker.say("phase", phase="imported", duration_s=self._now_s - worker.started_s)
        worker.gang = gang
        if gang is not None and gang is self._gang:
            gang.ready()

    def _break(self, gang: Gang) -> None:
        if not gang.is_over:
            gang.break_at(self._now_s)

    def _miss_peer(self, gang: Gang) -> None:
        """Those that are left say that their peers are gone, unless they are in another gang by now."""
        if gang is not self._gang or not any(worker.speaks for worker in gang.members.values()):
            return
        speakers, more = gang.voices()
        for worker in speakers:
            worker.say("peer_failure", **more)
        self._watched = gang

    def _next_fault(self) -> None:
        found = next(self._faults, None)
        if found is None:
            return
        time_s, rank, cause = found
        if cause not in FAULTS:
            raise EngineError(f"no fault {cause!r} can be played", hint="one of " + ", ".join(FAULTS))
        self.at(time_s, lambda: self._befall(rank, cause))

    def _befall(self, rank: int, cause: str) -> None:
        worker = self._at_rank(rank)
        if worker is not None:
            self.strike(worker, cause)
        self._next_fault()

    def _at_rank(self, rank: int) -> TwinWorker | None:
        gang = self._gang
        if gang is not None and rank < gang.size:
            return gang.members.get(rank)
        standbys = [worker for worker in self.living if worker.gang is None]
        index = rank - (gang.size if gang is not None else 0)
        return standbys[index] if 0 <= index < len(standbys) else None
