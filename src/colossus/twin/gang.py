"""One simulated gang: what its workers do from the order to join to the end of the job, and what they say and write of it.

It follows train/worker.py, train/session.py and train/loop.py step by step, with the same policies; only time and numbers are made up. A gang of
more than a few ranks speaks with one voice, so that a step of a hundred thousand costs no more than one of two.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from math import ceil
from typing import TYPE_CHECKING, Any

from colossus.policy import checkpoint as policy

if TYPE_CHECKING:
    from colossus.twin.engine import TwinEngine, TwinWorker

_PROFILED_STEP = 6  # as train/loop.py, which a twin may not import
# Ranks that each say for themselves what they do.
_VOICES = 64
_FINE = 1e-4


class Gang:
    """Members come by their orders; once all are there and ready, ``life`` runs until something breaks it."""

    def __init__(self, engine: TwinEngine, order: dict[str, Any]) -> None:
        self.engine = engine
        self.script = engine.script
        self.attempt: int = order["attempt"]
        self.size: int = order["num_workers"]
        self.anew: bool = order["anew"]
        self.mtbf_s: float = order["mtbf_s"]
        self.members: dict[int, TwinWorker] = {}
        self.has_survivors = False
        self.has_joined = False
        self.is_over = False
        self.stop_requested = False
        self.step = 0
        self._num_ready = 0
        self._stepping = False
        self._wishes = False, False
        self._blocked_s = 0.0
        self._span: tuple[float, int, float, int | None] | None = None
        self._disk_steps = self.script.disk_steps
        self._asked_disk = 0
        self._busy_until_s = 0.0
        self._last_blocked_s = 0.0
        self._ram_steps = 1
        self._scope = {"attempt": self.attempt, "rank": 0}

    def add(self, worker: TwinWorker, order: dict[str, Any]) -> None:
        self.members[order["rank"]] = worker
        self.has_survivors |= order["do"] == "reform"
        if worker.is_imported:
            self.ready()

    def ready(self) -> None:
        """One more member has imported everything and has its order."""
        self._num_ready += 1
        if self._num_ready == self.size and not self.is_over:
            self.engine.live(self, self._life())

    def break_at(self, now_s: float) -> None:
        """A member is lost: what was under way comes to nothing. Whole steps of a span were told by then."""
        if self._span is not None:
            begin_s, first, step_s, ram_steps = self._span
            done = min(int((now_s - begin_s) / step_s + 1e-9), self.script.num_steps - first)
            self._span = None
            if done > 0:
                self._tell_span(first, done, begin_s + done * step_s, done * step_s, ram_steps)
                self._say_step()
        self.is_over = True

    def speak_up(self, now_s: float) -> None:
        """Says how far a span is, as its single steps would have said: else who looks in the middle of one would take the gang for stalled."""
        if self._span is not None:
            begin_s, first, step_s, _ = self._span
            done = int((now_s - begin_s) / step_s + 1e-9)
            if done:
                self.members[0].say("step", step=first + done, step_s=self.script.step_s)

    def voices(self) -> tuple[list[TwinWorker], dict[str, Any]]:
        """Who speaks, and what they add: each for itself, or in a large gang the first for all."""
        alive = (worker for worker in self.members.values() if worker.speaks)
        return (list(alive), {}) if self.size <= _VOICES else ([next(alive)], {"all": True})

    # From the order to the first step

    def _life(self) -> Iterator[float]:
        times, engine = self.script.times, self.engine
        join_s = times.reform_s if self.has_survivors else times.join_s
        yield join_s
        self.has_joined = True
        self._say("phase", phase="joined", duration_s=join_s)
        kept = engine.has_programs and not self.anew
        compile_s = times.kept_s if kept else times.compile_s
        yield compile_s
        engine.has_programs = True
        self._say("phase", phase="compiled", duration_s=compile_s, compilations=0 if kept else self.script.compilations, source="kept" if kept else "traced")
        self.step, source = engine.newest_state()
        restore_s = {"ram": times.restore_ram_s, "disk": times.restore_disk_s, "init": times.init_s}[source]
        yield restore_s
        self._say("phase", phase="restored", duration_s=restore_s, step=self.step, source=source)
        self._asked_disk = self.step if self.script.disk_steps is None else engine.disk_step or 0  # as train.loop.last_asked
        yield from self._train(on_disk=source == "disk")

    # Training

    def _train(self, *, on_disk: bool) -> Iterator[float]:
        script = self.script
        saved = self.step if on_disk else None
        is_first = True
        while self.step < script.num_steps:
            yield from self._some_steps(is_first)
            is_first = False
            wants_ram, wants_disk = self._wishes
            if self.stop_requested:
                yield from self._save_last(saved)
                yield from self._end("interrupted")
                return
            if wants_ram:
                yield from self._save_ram()
            if wants_disk:
                yield from self._save_disk()
                saved = self.step
            if script.evaluation_steps and self.step % script.evaluation_steps == 0 and self.step < script.num_steps:
                yield from self._evaluate()
        yield from self._evaluate()
        yield from self._save_last(saved)
        yield from self._end("done")

    def _some_steps(self, is_first: bool) -> Iterator[float]:
        """One step, or as many equal ones as may be told together."""
        script, now_s = self.script, self.engine.now_s()
        num_steps = 1 if is_first else self._room()
        step_s = script.times.first_step_s if is_first else script.step_s
        if script.span_steps == 1:
            wishes = self._ram_due(self.step + 1), self._disk_due(self.step + 1, now_s)
            if not is_first and script.times.between_s:
                yield script.times.between_s
            yield step_s
            self.step += 1
            self._tell_step(step_s)
        else:
            wishes = False, self._disk_due(self.step + num_steps, now_s + (num_steps - 1) * step_s)
            ram_steps = self._ram_interval() if script.has_ram else None
            whole_s = num_steps * step_s + self._num_copies(self.step, num_steps, ram_steps) * script.times.copy_s
            self._span = (now_s, self.step, whole_s / num_steps, ram_steps)
            yield whole_s
            self._span = None
            self._tell_span(self.step, num_steps, self.engine.now_s(), whole_s, ram_steps)
        self._wishes = wishes
        self._say_step()
        if script.profiles and self.attempt == 1 and self.step == _PROFILED_STEP and script.span_steps == 1:
            yield script.times.profile_s
            self._tell("step_parts", step=self.step, parts_s=dict(script.parts_s))

    def _room(self) -> int:
        """Steps until something else is to be done."""
        script = self.script
        ends = [self.step + script.span_steps, script.num_steps]
        if script.evaluation_steps:
            ends.append((self.step // script.evaluation_steps + 1) * script.evaluation_steps)
        later = bisect_right(script.halt_steps, self.step)
        if later < len(script.halt_steps):
            ends.append(script.halt_steps[later])
        due = self._asked_disk + (self._disk_steps or policy.FIRST_SAVE_STEP)
        busy_s = self._busy_until_s - self.engine.now_s()
        ends.append(max(due, self.step + 1, self.step + ceil(busy_s / script.step_s)))
        return min(ends) - self.step

    def _tell_step(self, step_s: float) -> None:
        self._tell(
            "step",
            step=self.step,
            loss=None,
            grad_norm=None,
            learning_rate=None,
            duration_s=step_s,
            data_s=min(step_s, self.script.times.data_wait_s),
            blocked_s=self._blocked_s,
            memory_bytes=self.script.memory_bytes,
            applied=True,
        )
        self._blocked_s = 0.0

    def _tell_span(self, first: int, num_steps: int, at_s: float, whole_s: float, ram_steps: int | None) -> None:
        copies = self._num_copies(first, num_steps, ram_steps)
        copied_s = min(whole_s, copies * self.script.times.copy_s)
        self.step = first + num_steps
        if copies and ram_steps:
            self.engine.ram_step = self.step // ram_steps * ram_steps
        self.engine.tell(
            "steps",
            at_s=at_s,
            scope=self._scope,
            from_step=first,
            to_step=self.step,
            duration_s=whole_s,
            productive_s=whole_s - copied_s,
            blocked_s=copied_s,
            straggler_s=0.0,
            power_cap_s=0.0,
            fewer_nodes_s=0.0,
            num_saves=copies,
        )

    @staticmethod
    def _num_copies(first: int, num_steps: int, ram_steps: int | None) -> int:
        return (first + num_steps) // ram_steps - first // ram_steps if ram_steps else 0

    # Saving and evaluating

    def _ram_due(self, step: int) -> bool:
        return self.script.has_ram and step % self._ram_steps == 0

    def _ram_interval(self) -> int:
        return self.script.ram_steps or policy.ram_interval_steps(copy_s=max(self.script.times.copy_s, _FINE), step_s=self.script.step_s)

    def _disk_due(self, step: int, at_s: float) -> bool:
        """Decided before the step that it follows, at ``at_s``, as the leader does."""
        if at_s < self._busy_until_s or step >= self.script.num_steps:
            return False
        if step - self._asked_disk < (self._disk_steps or policy.FIRST_SAVE_STEP):
            return False
        self._asked_disk = step
        return True

    def _save_ram(self) -> Iterator[float]:
        copy_s = self.script.times.copy_s
        yield copy_s
        self._blocked_s += copy_s
        self.engine.ram_step = self.step
        self._ram_steps = self._ram_interval()
        self._tell("checkpoint_started", step=self.step, tier="ram", blocked_s=copy_s)

    def _save_disk(self) -> Iterator[float]:
        times = self.script.times
        self._say_busy("saving")
        begun_s, step = self.engine.now_s(), self.step
        self._busy_until_s = begun_s + max(times.save_s, times.blocked_s)
        yield times.blocked_s
        self._blocked_s += times.blocked_s
        self._last_blocked_s = times.blocked_s
        self._tell("checkpoint_started", step=step, tier="disk", blocked_s=times.blocked_s)
        self.engine.at(self._busy_until_s, lambda: None if self.is_over else self._saved(step, times.save_s))

    def _saved(self, step: int, save_s: float) -> None:
        """Committed: from now on it outlives the gang."""
        script = self.script
        self.engine.disk_step = max(step, self.engine.disk_step or 0)
        self._tell("checkpoint_saved", step=step, tier="disk", duration_s=save_s, size_bytes=script.times.save_bytes)
        if script.disk_steps is not None:
            return
        blocked_s = max(self._last_blocked_s, _FINE)
        chosen = policy.interval_steps(save_s=save_s, blocked_s=blocked_s, step_s=script.step_s, mtbf_s=self.mtbf_s, restart_s=0.0).interval_steps
        if chosen != self._disk_steps:
            self._disk_steps = chosen
            self._tell("interval_chosen", interval_steps=chosen, save_s=save_s, step_s=script.step_s, mtbf_s=self.mtbf_s)

    def _save_last(self, saved: int | None) -> Iterator[float]:
        """Waits for the save under way, then saves what the run ends with."""
        times = self.script.times
        self._say_busy("saving")
        yield max(0.0, self._busy_until_s - self.engine.now_s())
        if saved == self.step:
            return
        yield times.last_blocked_s
        self._last_blocked_s = times.last_blocked_s
        self._tell("checkpoint_started", step=self.step, tier="disk", blocked_s=times.last_blocked_s)
        yield max(0.0, times.last_save_s - times.last_blocked_s)
        self._saved(self.step, max(times.last_save_s, times.last_blocked_s))

    def _evaluate(self) -> Iterator[float]:
        if not self.script.evaluates:
            return
        times = self.script.times
        self._say_busy("evaluating")
        duration_s = times.evaluation_s if self.attempt in self.engine.evaluated else times.first_evaluation_s
        yield duration_s
        self.engine.evaluated.add(self.attempt)
        self._tell("evaluation", step=self.step, loss=None, duration_s=duration_s)

    def _end(self, status: str) -> Iterator[float]:
        yield self.script.times.end_s
        self._say("ended", status=status, step=self.step)
        for worker in self.members.values():
            worker.leave(0)
        self.is_over = True

    # Saying

    def _say(self, what: str, **fields: Any) -> None:
        speakers, more = self.voices()
        for worker in speakers:
            worker.say(what, **fields, **more)

    def _say_step(self) -> None:
        """All say the first one after something else, so that the supervisor knows that they step; then the first rank does for them."""
        speakers, more = self.voices()
        if self._stepping and self.size > _VOICES:
            more = {}
        self._stepping = True
        for worker in speakers:
            worker.say("step", step=self.step, step_s=self.script.step_s, **more)

    def _say_busy(self, doing: str) -> None:
        """Of a large gang that steps, the first rank says it for all: of the others it is enough that they do not wait."""
        speakers, more = self.voices()
        for worker in speakers:
            worker.say("busy", doing=doing, **({} if self._stepping else more))

    def _tell(self, kind: str, **payload: Any) -> None:
        self.engine.tell(kind, at_s=self.engine.now_s(), scope=self._scope, **payload)
