"""Keeps a gang of workers training to the end of its job: starts them, watches them, decides through policy, acts.

A gang is ``num_workers`` ranks on one coordination service that lives here, so that no worker's death takes it down.
Workers that are not part of it stand by, imported and idle, to take a dead one's place. What is a fault: a worker that
exits, that stops beating (hung or stopped), or that makes no progress where its peers wait.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from colossus.engine import faults
from colossus.engine.outage import Outage
from colossus.engine.process import Engine, Service, Worker
from colossus.policy import recovery
from colossus.policy.checkpoint import expected_mtbf_s
from colossus.spec.errors import EngineError
from colossus.spec.event import Event, append_events
from colossus.spec.job import RecoverySpec
from colossus.spec.layout import Layout
from colossus.spec.run import Run

_GENTLE_STOP_S = 600.0
_STANDBY_PAUSE_S = 5.0
# How long the others are watched when a fault comes back, to tell a bad place from a program that fails in all.
_SETTLE_S = 10.0
# We find hangs by our own, shorter heartbeat; JAX's would end the survivors with SIGABRT. Service and members must have
# the same: a member beats twice in its own timeout, and a service with a shorter one holds it for dead before that.
_NATIVE_HEARTBEAT_S = 300.0
# A gang's process ids are told for so many ranks: with a million of them no one reads on.
_MOST_PIDS = 1024


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A fault made on purpose: SIGKILL to ``rank`` once ``step`` steps are done."""

    rank: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to supervise. ``layouts``: the layout for each number of workers that could carry the job."""

    run: Run
    recovery: RecoverySpec
    num_workers: int
    num_steps: int
    layouts: dict[int, Layout]
    prior_mtbf_s: float
    kills: tuple[Kill, ...] = ()


class Supervisor:
    """``run()`` returns the status, "done" or "interrupted"; raises EngineError when the policy gives up. ``on_event``: in place of the run's log."""

    def __init__(self, task: Task, engine: Engine, *, on_tick: Callable[[], None] = lambda: None, on_event: Callable[[Event], None] | None = None) -> None:
        self._task = task
        self._on_event = on_event or self._append
        self._engine = engine
        self._on_tick = on_tick
        self._gang: dict[int, Worker] = {}
        self._gone: dict[Worker, None] = {}
        self._standbys: list[Worker] = []
        self._service: Service | None = None
        self._old_services: list[Service] = []
        self._num_started = 0
        self._living: dict[Worker, None] = {}
        self._generation = 0
        self._num_workers = task.num_workers
        self._began_s = engine.now_s()
        self._session = f"{os.getpid()}-{round(engine.wall_s() * 1e9)}"
        self._num_faults = 0
        self._num_recoveries = 0
        self._num_without_progress = 0
        self._same_rank: tuple[tuple[int, ...], int] = ((), 0)
        self._furthest_step = 0
        self._peer_failure_s: float | None = None
        self._outage: Outage | None = None
        self._next_standby_s = 0.0
        self._kills = sorted(task.kills, key=lambda kill: kill.step)
        self._injected_s: dict[int, float] = {}
        self._stop_level = 0
        self._stop_sent_s: float | None = None
        self._ended: dict[int, dict[str, Any]] = {}

    def run(self) -> str:
        """Starts the gang and stays with it to the end; leaves no worker behind, whatever happens."""
        with self._signals():
            try:
                self._start_gang([self._start_worker() for _ in range(self._num_workers)], how="start")
                while True:
                    self._wait(self._wake_s())
                    status = self._look()
                    self._on_tick()
                    if status is not None:
                        return status
            finally:
                self._end_all()

    def _look(self) -> str | None:
        """One round of looking: stop requests, injected kills, faults, the end."""
        if self._stop_level >= 2:
            return "interrupted"
        if self._stop_level == 1 and self._stop_sent_s is None:
            self._stop_sent_s = self._engine.now_s()
            for worker in self._gang.values():
                worker.send({"do": "stop"})
        if self._stop_sent_s is not None and self._engine.now_s() - max(self._stop_sent_s, self._last_progress_s()) > _GENTLE_STOP_S:
            return "interrupted"
        self._inject()
        if len(self._ended) == self._num_workers:
            return self._ended[0]["status"]
        self._drop_standbys()
        fault = self._find_fault()
        if fault is not None:
            if self._stop_sent_s is not None and not fault.permanent:  # asked to stop, and now broken: what is saved is saved
                return "interrupted"
            self._recover(fault)
        self._tend_standbys()
        self._close_old_services()
        return None

    def _last_progress_s(self) -> float:
        """When a worker last said that it does something; a long save says so again and again."""
        return max((worker.last_progress_s for worker in self._gang.values()), default=0.0)

    # Finding faults

    def _find_fault(self) -> recovery.Fault | None:
        """Looks at those that ended or went silent alone: a gang of thousands costs no more than one of two."""
        culprits = self._members(self._gone)
        if culprits:
            return faults.exited(culprits)
        now, spec = self._engine.now_s(), self._task.recovery
        waited_s = 0.0 if self._peer_failure_s is None else now - self._peer_failure_s
        silent = self._members(self._engine.silent(now - spec.heartbeat_timeout_s))
        living = (worker for rank, worker in self._gang.items() if rank not in self._ended)
        return faults.among_living(living, silent, spec, now=now, waited_s=waited_s)

    def _members(self, workers: Iterable[Worker]) -> dict[int, Worker]:
        """Those of them that are part of the gang and have not said that they are done, by rank."""
        found = {worker.rank: worker for worker in workers if worker.rank is not None and self._gang.get(worker.rank) is worker}
        return {rank: found[rank] for rank in sorted(found) if rank not in self._ended}

    def _settled(self, fault: recovery.Fault) -> recovery.Fault:
        """The fault once the other ranks failed too or showed that they only miss their peers."""
        deadline_s = self._engine.now_s() + _SETTLE_S
        others = [worker for rank, worker in self._gang.items() if rank not in fault.ranks]
        while self._engine.now_s() < deadline_s and self._stop_level < 2 and any(worker.exit_code is None and not worker.waiting for worker in others):
            self._wait(deadline_s)
        return self._find_fault() or fault

    # Recovering

    def _recover(self, fault: recovery.Fault) -> None:
        now = self._engine.now_s()
        at_s = self._fault_time(fault, now)
        self._num_faults += 1
        progress = self._outage is None or self._furthest_step > self._outage.from_step
        if not progress and fault.cause == "exited":
            fault = self._settled(fault)
        self._num_without_progress = 0 if progress else self._num_without_progress + 1
        count = self._same_rank[1] + 1 if not progress and self._same_rank[0] == fault.ranks else 1
        self._same_rank = (fault.ranks, count)
        advice = faults.advice({rank: self._gang[rank] for rank in fault.ranks})
        self._tell("fault", cause=fault.cause, detail=fault.detail, detected_s=now - at_s, rank=fault.ranks[0] if fault.ranks else None)
        for rank in fault.ranks:
            self._dismiss(self._gang.pop(rank))
        survivors = {rank: worker for rank, worker in self._gang.items() if worker.exit_code is None}
        decision = recovery.decide(self._recovery_state(fault, survivors), self._task.recovery)
        self._tell("recovery", action=decision.action.value, reason=decision.reason, num_workers=decision.num_workers)
        if decision.action is recovery.Action.GIVE_UP:
            raise EngineError(decision.reason, hint=advice or f"logs: {self._task.run.logs}")
        self._num_recoveries += 1
        self._outage = Outage(at_s=at_s, detected_s=now, from_step=self._furthest_step)
        self._peer_failure_s = None
        if decision.delay_s:
            self._engine.sleep(decision.delay_s)
        if decision.action is recovery.Action.REFORM:
            self._reform(survivors)
        else:
            self._restart(decision.num_workers)

    def _recovery_state(self, fault: recovery.Fault, survivors: dict[int, Worker]) -> recovery.RecoveryState:
        stepping = [worker for worker in survivors.values() if worker.phase in ("stepping", "busy")]
        if self._task.recovery.coordinator_port is not None:
            stepping = []  # survivors leave the old service while the new one listens: one port cannot serve both
        return recovery.RecoveryState(
            fault=fault,
            num_workers=self._num_workers,
            num_recoveries=self._num_recoveries,
            num_without_progress=self._num_without_progress,
            num_same_rank=self._same_rank[1],
            num_reformable=len(stepping),
            num_standbys=sum(worker.ready for worker in self._standbys),
            smaller_sizes=tuple(size for size in self._task.layouts if size < self._num_workers),
        )

    def _fault_time(self, fault: recovery.Fault, now: float) -> float:
        """When it happened, as near as can be known: an injected kill's own time, a hung worker's last beat, else now."""
        if fault.cause == "hung" and fault.ranks:
            return min(self._gang[rank].last_beat_s for rank in fault.ranks)
        return min(self._injected_s.pop(rank, now) for rank in fault.ranks) if fault.ranks else now

    def _reform(self, survivors: dict[int, Worker]) -> None:
        free = [rank for rank in range(self._num_workers) if rank not in survivors]
        ready = [worker for worker in self._standbys if worker.ready]
        filled = dict(zip(free, ready, strict=False))
        workers = survivors | filled
        taken = set(filled.values())
        self._standbys = [worker for worker in self._standbys if worker not in taken]
        self._start_gang([workers[rank] for rank in range(self._num_workers)], how="reform")

    def _restart(self, num_workers: int) -> None:
        for worker in self._gang.values():
            self._dismiss(worker)
        self._gang.clear()
        if self._service is not None:
            self._service.shutdown(wait=self._task.recovery.coordinator_port is not None)
            self._service = None
        self._num_workers = num_workers
        ready = sorted(self._standbys, key=lambda worker: not worker.ready)
        chosen = ready[:num_workers]
        self._standbys = ready[num_workers:]
        how = "standby" if len(chosen) == num_workers and all(worker.ready for worker in chosen) else "start"
        self._start_gang([*chosen, *(self._start_worker() for _ in range(num_workers - len(chosen)))], how=how)

    # Starting

    def _start_gang(self, workers: list[Worker], *, how: str) -> None:
        spec = self._task.recovery
        if self._service is not None:
            self._old_services.append(self._service)
        self._generation += 1
        size = len(workers)
        self._service = self._engine.service(size, port=spec.coordinator_port, heartbeat_timeout_s=_NATIVE_HEARTBEAT_S) if size > 1 else None
        now = self._engine.now_s()
        mtbf_s = expected_mtbf_s(prior_mtbf_s=self._task.prior_mtbf_s, num_failures=self._num_faults, elapsed_s=now - self._began_s)
        self._ended.clear()
        order = {
            "session": self._session,
            "native_heartbeat_s": _NATIVE_HEARTBEAT_S,
            "anew": self._num_without_progress > 0,
            "attempt": self._generation,
            "address": self._service.address if self._service else None,
            "num_workers": size,
            "layout": self._task.layouts[size].to_data(),
            "mtbf_s": mtbf_s,
        }
        for rank, worker in enumerate(workers):
            survives = rank in self._gang and self._gang[rank] is worker
            worker.rank, worker.waiting, worker.last_progress_s = rank, False, now
            worker.phase = "starting" if not worker.ready else "joining"
            worker.send({"do": "reform" if survives else "join", "rank": rank, "cores": self._engine.cores(rank, size), **order})
        self._gang = dict(enumerate(workers))
        self._tell("attempt_started", attempt=self._generation, num_workers=size, how=how, pids=[worker.pid for worker in workers[:_MOST_PIDS]])

    def _start_worker(self) -> Worker:
        self._num_started += 1
        worker = self._engine.start(self._num_started)
        self._living[worker] = None
        return worker

    def _drop_standbys(self) -> None:
        """One that ended or hangs is none: before a fault is mended, so that none of them takes a dead worker's place."""
        now, spec = self._engine.now_s(), self._task.recovery
        silent = [worker for worker in self._engine.silent(now - spec.heartbeat_timeout_s) if faults.is_silent(worker, spec, now)]
        for worker in [worker for worker in (*self._gone, *silent) if worker in self._standbys]:
            self._standbys.remove(worker)
            self._dismiss(worker)

    def _tend_standbys(self) -> None:
        """Starts standbys once the gang trains, so that they do not slow its start; not in a hurry where they die."""
        now, spec = self._engine.now_s(), self._task.recovery
        missing = spec.num_standbys - len(self._standbys)
        if missing > 0 and now >= self._next_standby_s and all(worker.phase == "stepping" for worker in self._gang.values()):
            self._next_standby_s = now + _STANDBY_PAUSE_S
            self._standbys += [self._start_worker() for _ in range(missing)]

    def _wake_s(self) -> float | None:
        """When there is something to do although nobody says anything."""
        return self._next_standby_s if len(self._standbys) < self._task.recovery.num_standbys and self._next_standby_s > self._engine.now_s() else None

    def _close_old_services(self) -> None:
        """A service may only end when its survivors have left it: that is when all are in the next gang."""
        if self._old_services and all(worker.phase not in ("starting", "joining") for worker in self._gang.values()):
            for service in self._old_services:
                service.shutdown(wait=False)
            self._old_services.clear()

    # Listening

    def _wait(self, wake_s: float | None = None) -> None:
        for worker in self._engine.wait(wake_s):
            is_gone = worker.exit_code is not None  # asked before its last words are read, which may say that it ended well
            while self._listen(worker) and is_gone:
                pass
            if is_gone and worker in self._living:
                self._gone[worker] = None

    def _listen(self, worker: Worker) -> bool:
        """Hears what a worker said; whether it said anything."""
        messages = worker.messages()
        for message in messages:
            worker.last_beat_s = self._engine.now_s()
            if message["attempt"] not in (None, self._generation):
                continue  # of a gang that is no more
            getattr(self, f"_on_{message['say']}")(worker, message)
        return bool(messages)

    def _speakers(self, worker: Worker, message: dict[str, Any]) -> Iterable[Worker]:
        """Whom a message is from: a worker, or through it all of its gang."""
        return self._gang.values() if message.get("all") else (worker,)

    def _on_beat(self, worker: Worker, message: dict[str, Any]) -> None:
        pass

    def _on_phase(self, worker: Worker, message: dict[str, Any]) -> None:
        now = self._engine.now_s()
        for each in self._speakers(worker, message):
            each.phase, each.last_progress_s = message["phase"], now
        if message["phase"] == "imported":
            worker.ready = True
            if worker in self._standbys:
                self._tell("standby_ready", pid=worker.pid)
            return
        payload = {key: message[key] for key in ("phase", "duration_s", "compilations", "step", "source") if key in message}
        self._tell("worker_phase", scope={"rank": worker.rank}, **payload)
        if message["phase"] == "restored" and self._outage is None:
            self._furthest_step = message["step"]
        if self._outage is not None:
            self._outage.reached(message["phase"], now, message)

    def _on_step(self, worker: Worker, message: dict[str, Any]) -> None:
        now = self._engine.now_s()
        for each in self._speakers(worker, message):
            each.step, each.step_s, each.last_progress_s = message["step"], message["step_s"], now
            each.phase = "stepping"
        if worker.rank != 0:
            return
        if self._outage is not None and "first_step" not in self._outage.marks:
            self._outage.marks["first_step"] = now
            self._tell("recovered", **self._outage.payload(now))
        self._furthest_step = max(self._furthest_step, message["step"])

    def _on_busy(self, worker: Worker, message: dict[str, Any]) -> None:
        """Between steps: evaluating, saving, rolling back. It may take long, and is no hang."""
        now = self._engine.now_s()
        for each in self._speakers(worker, message):
            each.phase, each.last_progress_s = "busy", now

    def _on_peer_failure(self, worker: Worker, message: dict[str, Any]) -> None:
        for each in self._speakers(worker, message):
            each.waiting = True
        if self._peer_failure_s is None:
            self._peer_failure_s = self._engine.now_s()

    def _on_failed(self, worker: Worker, message: dict[str, Any]) -> None:
        worker.failure = message

    def _on_ended(self, worker: Worker, message: dict[str, Any]) -> None:
        for each in self._speakers(worker, message):
            if each.rank is not None:
                self._ended[each.rank] = message

    # Ending

    def _inject(self) -> None:
        reached = takewhile(lambda kill: kill.step <= self._furthest_step, self._kills)
        for kill in [kill for kill in reached if kill.rank in self._gang]:
            self._kills.remove(kill)
            worker = self._gang[kill.rank]
            self._injected_s[kill.rank] = self._engine.now_s()
            worker.strike()
            self._tell("injected", what="SIGKILL", rank=kill.rank, pid=worker.pid)

    def _dismiss(self, worker: Worker) -> None:
        self._living.pop(worker, None)
        self._gone.pop(worker, None)
        self._engine.dismiss(worker)

    def _end_all(self) -> None:
        for worker in list(self._living):
            self._dismiss(worker)
        for service in filter(None, [*self._old_services, self._service]):
            service.shutdown()
        self._engine.close()

    def _tell(self, kind: str, *, scope: dict[str, Any] | None = None, **payload: Any) -> None:
        event = Event(time_s=self._engine.wall_s(), kind=kind, scope={"attempt": self._generation, **(scope or {})}, payload=payload)
        self._on_event(event)

    def _append(self, event: Event) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the run
            append_events(self._task.run.events, [event])

    @contextlib.contextmanager
    def _signals(self) -> Any:
        def stop(signum: int, frame: Any) -> None:
            self._stop_level += 1

        kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
