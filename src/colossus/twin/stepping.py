"""The gang while it steps: pace, progress, the book, and what of its course and log is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from math import inf, pi
from typing import Any

from colossus.twin.book import (
    BOOK,
    CAP,
    CHECK,
    CHECKPOINT,
    FEWER,
    PRODUCTIVE,
    STRAGGLER,
    IncidentRow,
    Outage,
    Span,
)
from colossus.twin.faults import Fault, lemon_nodes
from colossus.twin.kernel import Kernel
from colossus.twin.nodes import GANG, Nodes
from colossus.twin.progress import Pace, Progress
from colossus.twin.setting import Setting

# What summing up seconds may leave of a job that is done.
_ROUNDING_S = 1e-6
# Marks of a course at most, about.
_MARKS = 4000
# A day's two halves, and from midnight to the warm one less a half.
_HALF_DAY_S, _DAWN_S = 43200.0, 10800.0
# Events at one time: what comes back goes before what fails, and the end of the job before both.
END, BACK, LIMIT, FAULT = 0, 1, 2, 3


class Stepping(ABC):
    """Steps between what happens. ``marks``, ``rewinds`` and ``incidents``: the course, where it is kept; ``log``: rows of what happened, where it is logged."""

    def __init__(self, setting: Setting, *, seed: int, is_kept: bool, is_logged: bool) -> None:
        self.setting = setting
        scenario, grounds = setting.scenario, setting.grounds
        self.kernel = Kernel()
        lemons = lemon_nodes(setting.profile, grounds, seed=seed)
        self.nodes = Nodes(grounds.num_nodes, grounds.num_gang_nodes, lemons.tolist())
        self.progress = Progress(blocked_s=setting.blocked_s, save_s=setting.save_s)
        self.book = [0.0] * len(BOOK)
        self.num_steps = setting.workload.num_steps
        self._horizon_s = scenario.horizon_s
        self.num_disk_losses = 0
        self.stepping_s = 0.0
        self.rows: list[tuple[Any, ...]] = []
        self.is_done = False
        self._slow: dict[int, tuple[float, float]] = {}
        self._suspects: list[Fault] = []
        self._outage: Outage | None = None
        self._turn = self._awaited = 0
        self._look_s = inf
        self._since_s = 0.0
        self._diurnal = 0.0
        self._is_adaptive = scenario.checkpoint.interval_s == "adaptive"
        self._interval: int | None = None
        self._interval_of: Pace | None = None
        self.interval_reason = ""
        self._speed = 1.0
        self._set_pace()
        self.is_kept, self.is_logged = is_kept or is_logged, is_logged
        self.log: list[tuple[Any, ...]] = []
        self.marks = array("d", [0.0] * len(BOOK) + [0.0, 1.0] + [0.0] * len(self.nodes.seconds))
        self._marked_s, self._resolution_s = 0.0, scenario.horizon_s / _MARKS
        self.rewinds: list[tuple[float, float]] = []
        self._span = Span(0.0, 0, [], 0)

    @property
    def incidents(self) -> list[IncidentRow]:
        """Every standstill, in order of its end."""
        return list(map(IncidentRow._make, self.rows))

    @abstractmethod
    def _on_return(self, turn: int) -> None:
        """A node that was awaited is back."""

    @property
    def wall_s(self) -> float:
        return self._since_s

    def _begin(self, step: int) -> None:
        """The gang steps from ``step`` on."""
        now_s, setting = self.kernel.now_s, self.setting
        nodes = self.nodes
        if nodes.next_back_s <= now_s:
            nodes.settle(now_s)
        nodes.tick(now_s)
        nodes.steps = True
        if self._slow or not self._is_paced or self.nodes.gang != self._paced_gang:
            self._set_pace()
        if self._is_adaptive or self._interval_of is not self._pace:
            self._interval_of = self._pace
            self._interval, self.interval_reason = setting.interval_steps(self._pace.step_s, num_disk_losses=self.num_disk_losses, elapsed_s=now_s)
        self.progress.begin(step, self._interval)
        self._since_s = now_s
        if self.is_logged:
            self._span = Span(now_s, step, list(self.book), self.progress.num_saves)
        self._schedule_end()
        if self._suspects or self.nodes.gang < setting.num_gang:
            self._await()

    def _schedule_end(self) -> None:
        """Sees to it that the job ends when its steps are done: one look is asked for at a time, at or before then."""
        self._turn += 1
        now_s = self.kernel.now_s
        least_s = now_s + (self.num_steps - self.progress.at) * self._pace.step_s
        if self._look_s <= least_s or least_s > self._horizon_s:
            return
        self._look_s = now_s + self.progress.remaining_s(self.num_steps, self._pace.step_s)
        if self._look_s <= self._horizon_s:
            self.kernel.at(self._look_s, self._on_look, self._look_s, END)
        else:
            self._look_s = inf

    def _on_look(self, asked_s: float) -> None:
        if asked_s != self._look_s:
            return
        self._look_s = inf
        if self._outage is not None:
            return  # the next gang asks for another
        self._close(asked_s)
        if self.progress.remaining_s(self.num_steps, self._pace.step_s) > _ROUNDING_S:
            self._schedule_end()
            return
        self._finish_exactly()
        self.is_done = True
        self._tell_steps()
        self.kernel.clear()

    def _finish_exactly(self) -> None:
        """Rounding must not leave a part of the last step undone."""
        self.book[PRODUCTIVE] = self.num_steps * self._pace.productive_s
        self.progress.at = float(self.num_steps)

    def _close(self, now_s: float) -> None:
        """Books the time of steps up to now."""
        elapsed_s = now_s - self._since_s
        if self._outage is None and elapsed_s > 0:
            pace, book = self._pace, self.book
            done, blocked_s = self.progress.advance(now_s, elapsed_s, pace.step_s)
            book[PRODUCTIVE] += done * pace.productive_s
            book[CHECKPOINT] += blocked_s + done * pace.copy_s
            if pace.is_longer:
                book[STRAGGLER] += done * pace.straggler_s
                book[FEWER] += done * pace.fewer_s
                book[CAP] += done * pace.cap_s
                book[CHECK] += done * pace.check_s
            self.stepping_s += elapsed_s - blocked_s
            self._since_s = now_s

    def _set_pace(self) -> None:
        self._paced_gang, self._is_paced = self.nodes.gang, True
        slowest = max((slower for node, (slower, _) in self._slow.items() if self.nodes.place[node] == GANG), default=0.0)
        self._pace = self.setting.pace(self._paced_gang, slowest, self._diurnal, self._speed)

    def _repace(self) -> None:
        """The step takes another time from now on, or when the gang is back."""
        self._is_paced = False
        if self._outage is None:
            self._close(self.kernel.now_s)
            if self.is_kept:
                self._mark(self.kernel.now_s)
            self._set_pace()
            self._schedule_end()

    def _on_half_day(self, _: None) -> None:
        """From nine in the morning to nine in the evening it is warm, else cool: a half wave's mean each, midnight being the start."""
        now_s = self.kernel.now_s
        half = int((now_s + _DAWN_S) // _HALF_DAY_S)
        self._diurnal = self.setting.scenario.stragglers.diurnal_fraction * (0.5 + (1 / pi if half % 2 else -1 / pi))
        if now_s:
            self._repace()
        self.kernel.at((half + 1) * _HALF_DAY_S - _DAWN_S, self._on_half_day, None, LIMIT)

    def _await(self) -> None:
        """Looks again when the next node is back."""
        if self.nodes.returns:
            self._awaited = turn = self._awaited + 1
            self.kernel.at(max(self.nodes.returns[0][0], self.kernel.now_s), self._on_return, turn, BACK)

    def _mark(self, now_s: float, *, is_due: bool = False) -> None:
        """The book and the nodes' seconds up to now; where a mark was made just before, only if it is due."""
        if is_due or now_s - self._marked_s >= self._resolution_s:
            self._marked_s = now_s
            self.nodes.settle(now_s)
            self.marks.extend(self.book)
            self.marks.extend((now_s, self._speed))
            self.marks.extend(self.nodes.seconds_at(now_s))

    def _mark_loss(self, now_s: float, to_step: int, since_s: float | None = None) -> None:
        """What was done beyond ``to_step`` is lost from now on, ``since_s`` where that is known."""
        lost = self.progress.at - to_step
        self._mark(now_s)
        began_s = now_s - lost * self._pace.step_s - self._blocked_within(lost) if since_s is None else since_s
        self.rewinds.append((max(0.0, began_s), now_s))

    def _blocked_within(self, lost: float) -> float:
        return self.setting.blocked_s * int(lost // self.progress.interval) if self.progress.interval else 0.0

    def _tell_steps(self, *splits: int, is_end: bool = True) -> None:
        """Logs the whole steps since the last such row: up to each of ``splits`` that lies among them, and after it, unless the span goes on (not ``is_end``).

        Linear in steps: what they took is spread evenly over a span.
        """
        if not self.is_logged or self._outage is not None:
            return
        at = self.progress.at
        cuts = [cut for cut in (*splits, *((int(at),) if is_end else ())) if self._span.step < cut <= at]
        for cut in sorted(set(cuts)):
            span = self._span
            share = (cut - span.step) / (at - span.step)
            spent = [share * (now - then) for now, then in zip(self.book, span.book, strict=True)]
            saves = round(share * (self.progress.num_saves - span.num_saves))
            end_s = span.begun_s + sum(spent)
            self.log.append(("steps", end_s, int(span.step), cut, spent, saves))
            self._span = Span(end_s, cut, [then + part for then, part in zip(span.book, spent, strict=True)], span.num_saves + saves)
