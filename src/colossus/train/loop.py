"""The step loop of one gang: feed, step, guard, evaluate, save, tell."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from colossus.policy import checkpoint as checkpoint_policy
from colossus.policy import guard as guard_policy
from colossus.spec.errors import StorageError
from colossus.spec.event import Event, append_events
from colossus.spec.job import TrainJob
from colossus.train import distributed
from colossus.train.checkpoint import DiskTier, newest_good_step, prune, remove_step, saved_steps
from colossus.train.feed import Feed
from colossus.train.profile import StepProfile, profiled
from colossus.train.ram import RamTier
from colossus.train.step import REQUESTS
from colossus.train.tracking import Trackers

# Which step of a session is profiled: past the first ones, before a first checkpoint.
_PROFILED_STEP = 6


@dataclass
class EventLog:
    """Appends this rank's events to the run's log; a full disk delays them, it does not stop training."""

    path: Path
    scope: dict[str, Any]
    trackers: Trackers | None = None
    _waiting: list[Event] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, kind: str, **payload: Any) -> None:
        event = Event(time_s=time.time(), kind=kind, scope=self.scope, payload=payload)
        if self.trackers is not None:
            self.trackers.write(event)
        with self._lock:  # the saving thread tells too
            self._waiting.append(event)
            try:
                append_events(self.path, self._waiting)
                self._waiting.clear()
            except OSError:
                del self._waiting[:-10_000]

    def close(self, wait_s: float) -> None:
        """Hands what trackers still hold to their files, and waits for that no longer than this."""
        if self.trackers is not None:
            self.trackers.close(wait_s)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a gang runs with: compiled programs, tiers of checkpoints, and the way to tell."""

    job: TrainJob
    step: Callable[..., Any]
    evaluate: Callable[..., Any]
    feed: Feed
    requests_sharding: Any
    agree: Callable[[str, str | None], str]
    on_busy: Callable[[str], None]
    restore: Callable[[int | None], tuple[Any, dict[str, Any]]]
    disk: DiskTier
    ram: RamTier | None
    log: EventLog
    is_leader: bool
    mtbf_s: float
    checkpoint_folder: Path
    is_language_model: bool = False
    num_validation_batches: int = 0
    profiles: bool = False


class Interrupted(Exception):
    """All ranks agreed to stop after a step, and saved it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class Diverged(Exception):
    """The guard saw bad steps come back after every rollback."""


def last_asked(folder: Path, step: int, interval_steps: int | None) -> int:
    """The step that a given interval counts from in a gang that goes on from ``step``: the newest on disk, so that faults that memory heals put no save off."""
    if interval_steps is None:
        return step
    return max((saved for saved in saved_steps(folder) if saved <= step), default=0)


class Loop:
    """Runs the steps. Every rank runs the same one; only the leader (rank 0) decides on saves and writes events."""

    def __init__(self, setup: Setup, state: Any, meta: dict[str, Any], *, on_disk: bool, on_progress: Callable[[int, float], None]) -> None:
        self._setup = setup
        self._state = state
        self._step = int(state["step"])
        self._guard = guard_policy.GuardState.from_data(meta["guard"]) if "guard" in meta else guard_policy.GuardState()
        self._num_rollbacks = meta.get("num_rollbacks", 0)
        self._furthest_bad_step = meta.get("furthest_bad_step", 0)
        self._on_progress = on_progress
        self._step_times: list[float] = []
        self._ram_interval = 1
        self._disk_interval = setup.job.checkpoint.interval_steps
        self._asked_disk_step = last_asked(setup.checkpoint_folder, self._step, self._disk_interval)  # the leader's, to keep the interval
        self._saved_step = self._step if on_disk else None  # every rank's
        self._rolled_back = False
        self._blocked_s = 0.0
        self._disk_blocked_s = 0.0
        self._steps_to_profile = _PROFILED_STEP
        self.stop_requested = False

    def run(self) -> int:
        """Trains to the job's last step and saves it; returns the step. Raises Interrupted or Diverged."""
        job = self._setup.job
        while self._step < job.num_steps:
            self._one_step()
            if self._due(job.evaluation.interval_steps) and self._step < job.num_steps:
                self._evaluate()
        self._evaluate()
        self._save_last()
        return self._step

    def _one_step(self) -> None:
        with self._profiled() as profile:  # whose beginning and end lie outside the step, as it is timed and told
            begin = time.perf_counter()
            batch = self._setup.feed.train(self._step)
            data_s = time.perf_counter() - begin
            limit = np.float32(guard_policy.threshold(self._guard, self._setup.job.guard))
            self._state, measured = self._setup.step(self._state, batch, limit, self._requests())
            measured = jax.tree.map(np.asarray, distributed.wait(measured))
            self._step += 1
            duration_s = time.perf_counter() - begin
            self._step_times = [*self._step_times[-49:], duration_s]
            self._tell_step(measured, duration_s, data_s)
        if profile is not None and profile.parts_s:
            self._tell("step_parts", step=self._step, parts_s=profile.parts_s)
        self._on_progress(self._step, median(self._step_times))
        self._watch(measured)
        self._answer({name for name, asked in zip(REQUESTS, measured["requests"], strict=True) if asked})

    def _profiled(self) -> contextlib.AbstractContextManager[StepProfile | None]:
        """On the leader, for one step of a run once the first are over: whatever XLA does is seen."""
        self._steps_to_profile -= 1
        if self._steps_to_profile != 0 or not self._setup.profiles:
            return contextlib.nullcontext()
        return profiled(self._setup.step)

    def _requests(self) -> Any:
        """This rank's wishes for the end of the step that is about to run, one row for each of its devices."""
        wishes = {"stop": self.stop_requested, "ram": False, "disk": False}
        if self._setup.is_leader:
            wishes["ram"] = self._setup.ram is not None and (self._step + 1) % self._ram_interval == 0
            wishes["disk"] = self._wants_disk()
        row = np.array([[wishes[name] for name in REQUESTS]], np.int32)
        sharding = self._setup.requests_sharding
        return jax.make_array_from_callback((sharding.mesh.size, len(REQUESTS)), sharding, lambda _: row)

    def _wants_disk(self) -> bool:
        ahead = self._step + 1
        if self._setup.disk.busy or ahead >= self._setup.job.num_steps:
            return False
        interval = self._disk_interval or checkpoint_policy.FIRST_SAVE_STEP
        if ahead - self._asked_disk_step < interval:
            return False
        self._asked_disk_step = ahead
        problem = self._setup.disk.room_problem(self._state)
        if problem:
            self._setup.log.tell("checkpoint_failed", step=ahead, reason=problem)
        return problem is None

    def _answer(self, agreed: set[str]) -> None:
        if self._rolled_back:  # what was wished for belongs to steps that are undone
            self._rolled_back = False
            agreed &= {"stop"}
        if "ram" in agreed and "stop" not in agreed:
            self._save_ram()
        if "stop" in agreed:
            self._save_last()
            raise Interrupted(self._step)
        if "disk" in agreed:
            self._save_disk()

    def _save_ram(self) -> None:
        assert self._setup.ram is not None
        begin = time.perf_counter()
        self._setup.ram.save(self._step, self._state, self._meta())
        copy_s = time.perf_counter() - begin
        self._blocked_s += copy_s
        wanted = self._setup.job.checkpoint.ram_interval_steps
        self._ram_interval = wanted or checkpoint_policy.ram_interval_steps(copy_s=copy_s, step_s=median(self._step_times))
        self._tell("checkpoint_started", step=self._step, tier="ram", blocked_s=copy_s)

    def _save_disk(self) -> None:
        self._asked_disk_step = self._saved_step = self._step
        self._setup.on_busy("saving")
        blocked_s = self._setup.disk.save(self._step, self._state, self._meta())
        self._disk_blocked_s = blocked_s
        self._blocked_s += blocked_s
        self._tell("checkpoint_started", step=self._step, tier="disk", blocked_s=blocked_s)

    def _save_last(self) -> None:
        """Saves the state that the run ends with; raises StorageError on the leader when that cannot be done."""
        self._setup.on_busy("saving")
        self._setup.disk.wait()
        if self._saved_step != self._step or self._setup.disk.failure is not None:
            self._save_disk()
        self._setup.disk.wait()
        if self._setup.disk.failure is not None and self._setup.is_leader:
            raise StorageError(
                f"the state of step {self._step} could not be saved: {self._setup.disk.failure}",
                hint="free some room; older checkpoints are whole, and colossus resume goes on from them",
            )

    def on_saved(self, step: int, duration_s: float, size_bytes: int) -> None:
        """A save is committed (called on the leader, from the saving thread): tell, choose the interval, tidy up."""
        self._setup.log.tell("checkpoint_saved", step=step, tier="disk", duration_s=duration_s, size_bytes=size_bytes)
        prune(self._setup.checkpoint_folder, self._setup.job.checkpoint)
        if self._setup.job.checkpoint.interval_steps is None and self._step_times:
            step_s = median(self._step_times)
            blocked_s = max(self._disk_blocked_s, 1e-4)
            decision = checkpoint_policy.interval_steps(save_s=duration_s, blocked_s=blocked_s, step_s=step_s, mtbf_s=self._setup.mtbf_s, restart_s=0.0)
            if decision.interval_steps != self._disk_interval:
                self._disk_interval = decision.interval_steps
                self._setup.log.tell("interval_chosen", interval_steps=decision.interval_steps, save_s=duration_s, step_s=step_s, mtbf_s=self._setup.mtbf_s)

    def _watch(self, measured: Any) -> None:
        """Hands the step to the guard and does what it decides."""
        seen = guard_policy.Observation(
            step=self._step, loss=float(measured["loss"]), grad_norm=float(measured["grad_norm"]), applied=bool(measured["applied"])
        )
        if self._step > self._furthest_bad_step and seen.applied:
            self._num_rollbacks = 0
        decision = guard_policy.observe(self._guard, self._setup.job.guard, seen, num_rollbacks=self._num_rollbacks)
        self._guard = decision.state
        if decision.verdict is guard_policy.Verdict.ACCEPT:
            return
        finite = math.isfinite(seen.loss) and math.isfinite(seen.grad_norm)
        self._tell("bad_step", step=self._step, reason="spike" if finite else "non-finite", loss=_finite(seen.loss), in_a_row=decision.state.num_bad_in_a_row)
        if decision.verdict is guard_policy.Verdict.STOP:
            raise Diverged(decision.reason)
        if decision.verdict is guard_policy.Verdict.ROLLBACK:
            self._roll_back(decision.reason)

    def _roll_back(self, reason: str) -> None:
        """To the newest good checkpoint before the bad steps, or to the beginning; what is newer is forgotten in both tiers."""
        self._setup.on_busy("rolling back")
        self._setup.disk.wait()
        from_step = self._step
        self._num_rollbacks += 1
        chosen = self._choose_good(from_step - self._guard.num_bad_in_a_row + 1) if self._setup.is_leader else None
        good = int(self._setup.agree(f"rollback-{from_step}-{self._num_rollbacks}", chosen))
        if self._setup.ram is not None:
            self._setup.ram.forget()
        self._state, meta = self._setup.restore(good if good >= 0 else None)
        distributed.wait(self._state)
        self._step = self._asked_disk_step = int(self._state["step"])
        self._saved_step = self._step if good >= 0 else None
        self._rolled_back = True
        self._furthest_bad_step = max(self._furthest_bad_step, from_step)
        restored = guard_policy.GuardState.from_data(meta["guard"]) if "guard" in meta else guard_policy.GuardState()
        self._guard = guard_policy.after_rollback(restored, num_rollbacks=self._num_rollbacks)
        self._tell("rollback", from_step=from_step, to_step=self._step, reason=reason)

    def _choose_good(self, before: int) -> str:
        folder = self._setup.checkpoint_folder
        good = newest_good_step(folder, before=before)
        for step in saved_steps(folder):
            if good is None or step > good:
                remove_step(folder, step)
        return str(-1 if good is None else good)

    def _evaluate(self) -> None:
        setup = self._setup
        count = setup.num_validation_batches
        if count == 0:
            return
        begin = time.perf_counter()
        results = []
        for index in range(count):
            setup.on_busy("evaluating")
            results.append(jax.tree.map(np.asarray, distributed.wait(setup.evaluate(self._state["params"], setup.feed.validation(index)))))
        loss = float(np.mean([float(loss) for loss, _ in results]))
        metrics = {name: _finite(float(np.mean([float(metrics[name]) for _, metrics in results]))) for name in results[0][1]}
        payload: dict[str, Any] = {"step": self._step, "loss": _finite(loss), "duration_s": time.perf_counter() - begin}
        if setup.is_language_model and math.isfinite(loss):
            payload["perplexity"] = math.exp(min(loss, 80.0))
        self._tell("evaluation", **payload, **({"metrics": metrics} if metrics else {}))

    def _meta(self) -> dict[str, Any]:
        return {
            "guard": self._guard.to_data(),
            "num_rollbacks": self._num_rollbacks,
            "furthest_bad_step": self._furthest_bad_step,
        }

    def _due(self, interval_steps: int | None) -> bool:
        return interval_steps is not None and self._step % interval_steps == 0

    def _tell(self, kind: str, **payload: Any) -> None:
        if self._setup.is_leader:
            self._setup.log.tell(kind, **payload)

    def _tell_step(self, measured: Any, duration_s: float, data_s: float) -> None:
        metrics = {name: _finite(float(value)) for name, value in measured["metrics"].items()}
        payload = {
            "step": self._step,
            "loss": _finite(float(measured["loss"])),
            "grad_norm": _finite(float(measured["grad_norm"])),
            "learning_rate": float(measured["learning_rate"]),
            "duration_s": duration_s,
            "data_s": data_s,
            "blocked_s": self._blocked_s,
            "memory_bytes": peak_memory_bytes(),
            "applied": bool(measured["applied"]),
        }
        self._blocked_s = 0.0
        self._tell("step", **payload, **({"metrics": metrics} if metrics else {}))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def peak_memory_bytes() -> int:
    """Peak bytes on this process's busiest device; on a CPU its peak resident set."""
    stats = [device.memory_stats() for device in jax.local_devices() if device.platform != "cpu"]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if entry]
    if peaks:
        return max(peaks)
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
