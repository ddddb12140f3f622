"""One replica of a synchronous job on a machine that fails: what happens, what ``policy`` decides about it, what that costs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import inf, pi
from typing import TYPE_CHECKING, Any

from colossus.policy.health import is_suspect, should_evict, should_grow
from colossus.policy.recovery import Action
from colossus.spec.faults import Effect
from colossus.twin.book import (
    BOOK,
    CAP,
    CHECK,
    CHECKPOINT,
    DETECT,
    DETECTING,
    FEWER,
    LOST,
    PRODUCTIVE,
    RECOMPILE,
    RESTART,
    RESTORE,
    RETURNING,
    STRAGGLER,
    WAIT,
    WAITING,
    IncidentRow,
    Outage,
    Span,
)
from colossus.twin.chance import Chance
from colossus.twin.faults import Fault, draw_faults, lemon_nodes
from colossus.twin.kernel import Kernel
from colossus.twin.nodes import GANG, REPAIR, SPARE, Nodes
from colossus.twin.progress import Pace, Progress
from colossus.twin.setting import GRID, Kind, Setting

if TYPE_CHECKING:
    from colossus.twin.power import Limit

# What summing up seconds may leave of a job that is done.
_ROUNDING_S = 1e-6
# Marks of a course at most, about.
_MARKS = 4000
# A day's two halves, and from midnight to the warm one less a half.
_HALF_DAY_S, _DAWN_S = 43200.0, 10800.0
# Events at one time: what comes back goes before what fails, and the end of the job before both.
_END, _BACK, _LIMIT, _FAULT = 0, 1, 2, 3


class Job:
    """Plays one replica to its end or the horizon. ``marks`` and ``incidents``: its course, in rows of MARK, and each standstill, where it is kept; ``log``: what happened, in order, where it is logged."""

    def __init__(self, setting: Setting, *, seed: int, limits: Sequence[Limit] = (), is_kept: bool = False, is_logged: bool = False) -> None:
        self.setting = setting
        scenario, grounds = setting.scenario, setting.grounds
        self.limits = limits
        self.kernel = Kernel()
        lemons = lemon_nodes(setting.profile, grounds, seed=seed)
        self.nodes = Nodes(grounds.num_nodes, grounds.num_gang_nodes, lemons.tolist())
        self.progress = Progress(blocked_s=setting.blocked_s, save_s=setting.save_s)
        self.book = [0.0] * len(BOOK)
        self.faults = draw_faults(setting.profile, scenario, grounds, seed=seed)
        self.chance = Chance(seed, scenario.recovery)
        self.num_steps = setting.workload.num_steps
        self._horizon_s = scenario.horizon_s
        self.num_faults = [0] * len(setting.profile.classes)
        self.num_interruptions: dict[str, int] = {}
        self.lost_steps = 0
        self.num_disk_losses = self.num_recoveries = 0
        self.stepping_s = 0.0
        self.incidents: list[IncidentRow] = []
        self.is_done = False
        self.failed: str | None = None
        self._slow: dict[int, float] = {}
        self._suspects: list[Fault] = []
        self._evicted: int | None = None
        self._history: dict[int, list[float]] = {}
        self._corrupt: list[tuple[float, int, Fault]] = []
        self._outage: Outage | None = None
        self._turn = self._awaited = 0
        self._look_s = inf
        self._since_s = 0.0
        self._diurnal = 0.0
        self._kinds = setting.kinds
        self._is_adaptive = scenario.checkpoint.interval_s == "adaptive"
        self._interval: int | None = None
        self._interval_of: Pace | None = None
        self.interval_reason = ""
        self._drains = scenario.recovery.drain_after_faults is not None
        self._failed_repair = setting.profile.failed_repair_fraction
        self._idle = setting.profile.idle_fraction
        self._lucks = self.faults.lucks
        self._speed = 1.0
        self._set_pace()
        self.is_kept, self.is_logged = is_kept or is_logged, is_logged
        self.log: list[tuple[Any, ...]] = []
        self.marks = array("d", [0.0] * len(BOOK) + [0.0, 1.0] + [0.0] * len(self.nodes.seconds))
        self._marked_s, self._resolution_s = 0.0, scenario.horizon_s / _MARKS
        self.rewinds: list[tuple[float, float]] = []
        self._span = Span(0.0, 0, [], 0)

    def run(self) -> None:
        setting, kernel = self.setting, self.kernel
        horizon_s = setting.scenario.horizon_s
        kernel.feed(self.faults.times_s, self._on_fault)
        if setting.scenario.stragglers.diurnal_fraction:
            self._on_half_day(None)
        for limit in self.limits:
            kernel.at(limit.start_s, self._on_limit, limit, _LIMIT)
            if not limit.is_outage:
                kernel.at(limit.end_s, self._on_limit, None, _LIMIT)
        self._begin(0)
        kernel.run(horizon_s)
        if not self.is_done:
            end_s = self.kernel.now_s if self.failed else horizon_s
            self._close(end_s)
            self._book_down(end_s)
            self._tell_steps()
        self.nodes.settle(self.wall_s)
        self.nodes.tick(self.wall_s)
        if self.is_kept:
            self._mark(self.wall_s, is_due=True)

    @property
    def wall_s(self) -> float:
        return self._since_s

    # Stepping

    def _begin(self, step: int) -> None:
        """The gang steps from ``step`` on."""
        now_s, setting = self.kernel.now_s, self.setting
        self.nodes.settle(now_s)
        self.nodes.tick(now_s)
        self.nodes.steps = True
        if not self._is_paced or self.nodes.gang != self._paced_gang:
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
        if self._look_s <= now_s + (self.num_steps - self.progress.at) * self._pace.step_s:
            return
        self._look_s = now_s + self.progress.remaining_s(self.num_steps, self._pace.step_s)
        if self._look_s <= self._horizon_s:
            self.kernel.at(self._look_s, self._on_look, self._look_s, _END)
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
        self._pace = self.setting.pace(self._paced_gang, max(self._slow.values()) if self._slow else 0.0, self._diurnal, self._speed)

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
        self.kernel.at((half + 1) * _HALF_DAY_S - _DAWN_S, self._on_half_day, None, _LIMIT)

    # Faults

    def _on_fault(self, place: int) -> None:
        if self._outage is not None and self._lucks[place] >= self._idle:
            return  # a job that does not run has no bugs; and what stands still may not break
        fault = self.faults[place]
        kind = self._kinds[fault.kind]
        self.nodes.settle(self.kernel.now_s)
        if not kind.is_of_job:
            was = self.nodes.place[fault.node]
            if was == REPAIR or (was == SPARE and fault.luck >= self._idle) or (fault.is_lemons and fault.node not in self.nodes.lemons):
                return
            self.num_faults[fault.kind] += 1
            if kind.effect is Effect.SLOW:
                self._slow_down(fault, was == GANG)
                return
            if kind.effect is Effect.CORRUPT:
                self._corrupts(fault, was == GANG)
                return
            if not self._take_down(fault, kind.group):
                return
        else:
            self.num_faults[fault.kind] += 1
        if self._outage is not None:
            self._again(fault, kind)
        elif kind.effect is Effect.PLANNED:
            self._stop_for(fault, kind)
        else:
            self._strike(fault, kind)

    def _take_down(self, fault: Fault, size: int) -> bool:
        """A group of nodes goes into repair; whether the gang lost any."""
        if size <= 1:
            return self._fail(fault.node, fault)
        first = fault.node // size * size
        hit = [self._fail(node, fault) for node in range(first, min(first + size, self.nodes.num_nodes))]
        return any(hit)

    def _fail(self, node: int, fault: Fault) -> bool:
        nodes, now_s = self.nodes, self.kernel.now_s
        if nodes.place[node] == REPAIR:
            return False
        nodes.tick(now_s)
        was_gang = nodes.fail(node)
        if self._slow and self._slow.pop(node, None) is not None:
            self._is_paced = False
        repair_s, is_thorough = fault.repair_s, False
        if self._drains:
            recovery_scenario = self.setting.scenario.recovery
            times_s = self._history.setdefault(node, [])
            times_s.append(now_s)
            if is_suspect(times_s, now_s=now_s, window_s=recovery_scenario.drain_window_s, num_faults=recovery_scenario.drain_after_faults):
                repair_s, is_thorough = self.chance.one(recovery_scenario.drain_repair), True
                times_s.clear()
        is_mended = is_thorough or fault.luck >= self._failed_repair
        nodes.repair_until(node, now_s + repair_s, is_mended)
        return was_gang

    def _await(self) -> None:
        """Looks again when the next node is back."""
        if self.nodes.returns:
            self._awaited = turn = self._awaited + 1
            self.kernel.at(max(self.nodes.returns[0][0], self.kernel.now_s), self._on_return, turn, _BACK)

    def _on_return(self, turn: int) -> None:
        if turn != self._awaited:
            return
        now_s, outage = self.kernel.now_s, self._outage
        self.nodes.settle(now_s)
        if outage is not None and outage.phase is WAITING and outage.action is Action.WAIT:
            self._book_down(now_s)
            self._decide(outage)
        elif outage is None and self._suspects:
            self._evict()
        elif outage is None and self.nodes.gang < self.setting.num_gang:
            self._grow()
            if self._outage is None:
                self._await()

    def _slow_down(self, fault: Fault, is_gang: bool) -> None:
        """A chip is slower until it is repaired, or swapped out."""
        kind = self._kinds[fault.kind]
        if not is_gang:
            self._take_down(fault, kind.group)
            return
        self._slow[fault.node] = max(kind.slowdown_fraction, self._slow.get(fault.node, 0.0))
        self._repace()
        self.kernel.at(self.kernel.now_s + fault.repair_s, self._on_fast, fault.node, _BACK)
        scenario = self.setting.scenario.recovery
        swap_s = scenario.swap.mean_s if self.setting.reforms else scenario.start.mean_s + scenario.compile.mean_s
        if scenario.evict_slow and should_evict(slowdown_fraction=kind.slowdown_fraction, expected_s=kind.mean_repair_s, swap_s=swap_s):
            self.kernel.at(self.kernel.now_s + self.chance.one(scenario.evict_detect), self._on_evict, fault, _FAULT)

    def _on_fast(self, node: int) -> None:
        if self._slow.pop(node, None) is not None:
            self._repace()

    def _on_evict(self, fault: Fault) -> None:
        """The slow node is known: out with it, now where the job runs and a spare is at hand, else with the next standstill or return."""
        if fault.node in self._slow:
            self._suspects.append(fault)
            if self._outage is None:
                self._evict()

    def _evict(self) -> None:
        if self._take_out_suspects():
            self._order("evicted", self._evicted)
        elif self._suspects:
            self._await()

    def _take_out_suspects(self) -> bool:
        """Known slow nodes go into repair, as far as spares fill their places; whether any did."""
        nodes, waiting = self.nodes, self._suspects
        nodes.settle(self.kernel.now_s)
        self._suspects, gone = [], False
        for fault in waiting:
            if fault.node not in self._slow:
                continue
            if nodes.gang + nodes.spare > self.setting.num_gang:
                gone = self._fail(fault.node, fault)
                self._evicted = fault.node
            else:
                self._suspects.append(fault)
        return gone

    def _corrupts(self, fault: Fault, is_gang: bool) -> None:
        """The state is wrong from now on and nobody knows, until it shows or a check finds it."""
        if not is_gang or self._outage is not None:
            return
        now_s = self.kernel.now_s
        self._close(now_s)
        clean = self.progress.committed(now_s)
        self._corrupt.append((now_s, clean, fault))
        self._tell_steps(clean, is_end=False)
        every_s = self.setting.scenario.recovery.sdc_check_interval_s
        found_s = fault.detect_s if every_s is None else min(fault.detect_s, fault.luck * every_s)
        self.kernel.at(now_s + found_s, self._on_corruption, fault, _FAULT)

    def _on_corruption(self, fault: Fault) -> None:
        found = next((row for row in self._corrupt if row[2] is fault), None)
        if found is None:
            return  # what was corrupt has been thrown away since
        if self._outage is not None:  # known once the gang is back
            self.kernel.at(self.kernel.now_s + 60.0, self._on_corruption, fault, _FAULT)
            return
        self.nodes.settle(self.kernel.now_s)
        self._fail(fault.node, fault)
        self._roll_back(fault, self._kinds[fault.kind], found[0], found[1])

    # Standing still

    def _strike(self, fault: Fault, kind: Kind) -> None:
        """The gang dies or hangs, and goes on from the newest copy that is left."""
        now_s, setting = self.kernel.now_s, self.setting
        self._close(now_s)
        to_step = self.progress.committed(now_s)
        is_disk = kind.needs_disk or setting.memory_steps is None
        if not is_disk:
            to_step = self.progress.in_memory(setting.memory_steps)  # type: ignore[arg-type]
        if not (self.is_logged or self._corrupt or self._suspects) and self._is_over(fault, kind, to_step, is_disk):
            return
        outage = self._stand(kind.cause, to_step, is_disk)
        outage.kind, outage.node = fault.kind, None if kind.is_of_job else fault.node
        outage.until_s = now_s + fault.detect_s
        self.num_disk_losses += kind.needs_disk
        self._know(kind.cause)

    def _is_over(self, fault: Fault, kind: Kind, to_step: int, is_disk: bool) -> bool:
        """The whole standstill at once, where nothing comes before its end and no log tells its parts: the same as one thing after the other, in half the time."""
        setting, nodes, kernel, now_s = self.setting, self.nodes, self.kernel, self.kernel.now_s
        if nodes.gang + nodes.spare < setting.num_gang:
            return False
        drawn = self.chance.swaps if setting.reforms else self.chance.starts
        plan_s = (self.chance.next_of(drawn), setting.restore_disk_s if is_disk else setting.restore_memory_s, 0.0 if setting.reforms else setting.compile_s)
        known_s = now_s + fault.detect_s
        back_s = known_s + plan_s[0] + plan_s[1] + plan_s[2]
        if kernel.fed_s <= back_s:
            self._pass_over(back_s)
        if not kernel.jump(back_s):
            return False
        drawn.pop()
        at, book = self.progress.at, self.book
        lost_s = (at - to_step) * self._pace.productive_s
        if self.is_kept:
            self._mark_loss(now_s, to_step)
        book[PRODUCTIVE] -= lost_s
        book[LOST] += lost_s
        book[DETECT] += known_s - now_s
        took_s = self._book_return(back_s - known_s, plan_s)
        self.lost_steps += int(at) - to_step
        self.num_disk_losses += kind.needs_disk
        self.num_recoveries += 1
        self.num_interruptions[kind.cause] = self.num_interruptions.get(kind.cause, 0) + 1
        if nodes.since_s != now_s:
            nodes.tick(now_s)
        nodes.steps = False
        nodes.settle(known_s)
        decision = setting.decide(fault.kind, kind.cause, nodes.gang, nodes.spare, nodes.repair)
        if nodes.gang != decision.num_workers:
            nodes.tick(known_s)
            nodes.resize(decision.num_workers)
        if self.is_kept:
            node = None if kind.is_of_job else fault.node
            parts_s = (known_s - now_s, 0.0, *took_s)
            source = "disk" if is_disk else "ram"
            self.incidents.append(
                IncidentRow(now_s, fault.kind, node, str(decision.action), decision.reason, kind.cause, int(at), to_step, lost_s, parts_s, source)
            )
            self._mark(back_s)
        self._begin(to_step)
        return True

    def _mark_loss(self, now_s: float, to_step: int, since_s: float | None = None) -> None:
        """What was done beyond ``to_step`` is lost from now on, ``since_s`` where that is known."""
        lost = self.progress.at - to_step
        self._mark(now_s)
        began_s = now_s - lost * self._pace.step_s - self._blocked_within(lost) if since_s is None else since_s
        self.rewinds.append((max(0.0, began_s), now_s))

    def _book_return(self, elapsed_s: float, plan_s: tuple[float, float, float]) -> tuple[float, float, float]:
        """Gives so much of the way back to its parts, in order; what rounding leaves is of the last."""
        start_s, restore_s, compile_s = plan_s
        took_s = min(elapsed_s, start_s)
        restored_s = min(elapsed_s - took_s, restore_s) if compile_s else elapsed_s - took_s
        compiled_s = elapsed_s - took_s - restored_s if compile_s else 0.0
        book = self.book
        book[RESTART] += took_s
        book[RESTORE] += restored_s
        book[RECOMPILE] += compiled_s
        return took_s, restored_s, compiled_s

    def _stop_for(self, fault: Fault, kind: Kind) -> None:
        """A stop in good order: the state is saved, then the work takes the time that a repair of its class takes."""
        now_s = self.kernel.now_s
        self._close(now_s)
        self.progress.committed(now_s)
        outage = self._stand(kind.cause, int(self.progress.at), self.setting.memory_steps is None)
        outage.kind, outage.save_s = fault.kind, self.setting.save_s
        outage.phase = WAITING
        outage.until_s = now_s + outage.save_s + fault.repair_s
        self._know(kind.cause)

    def _order(self, why: str, node: int | None = None) -> None:
        """The gang reforms by our own decision, nothing lost but the step under way."""
        now_s = self.kernel.now_s
        self._close(now_s)
        self.progress.committed(now_s)
        self._stand(why, int(self.progress.at), self.setting.memory_steps is None).node = node
        self._know(why)

    def _roll_back(self, fault: Fault, kind: Kind, clean_s: float, clean: int) -> None:
        """The state is known to be wrong since ``clean_s``: back to what was saved before."""
        now_s = self.kernel.now_s
        self._close(now_s)
        to_step = min(clean, self.progress.committed(now_s))
        outage = self._stand(kind.cause, to_step, True, since_s=clean_s)
        self.progress.disk = to_step
        outage.kind, outage.node = fault.kind, fault.node
        outage.until_s = now_s + self.setting.scenario.recovery.sdc_check_s
        self._know(kind.cause)

    def _black_out(self, until_s: float) -> None:
        """All nodes stand without power until then; copies in memory are gone."""
        now_s, outage = self.kernel.now_s, self._outage
        if outage is None:
            self._close(now_s)
            outage = self._stand(GRID, self.progress.committed(now_s), True)
        else:
            self._book_down(now_s)
            if not outage.is_disk:
                self._lose_copies(outage)
            self._count(GRID)
        outage.kind, outage.reason = None, GRID
        outage.phase, outage.action, outage.until_s = WAITING, "", until_s
        self._know(GRID)

    def _stand(self, name: str, to_step: int, is_disk: bool, since_s: float | None = None) -> Outage:
        """The gang stands from now on and will go on from ``to_step``; what was done beyond it is lost, ``since_s`` where it is known."""
        now_s, progress = self.kernel.now_s, self.progress
        at = progress.at
        if self.is_logged:
            self._tell_steps(to_step, progress.disk)
        outage = self._outage = Outage(now_s, name, int(at), to_step, is_disk)
        outage.lost_s = lost_s = (at - to_step) * self._pace.productive_s
        self.lost_steps += outage.from_step - to_step
        if self.is_kept:
            self._mark_loss(now_s, to_step, since_s)
        self.book[PRODUCTIVE] -= lost_s
        self.book[LOST] += lost_s
        if self._corrupt:
            self._corrupt = [row for row in self._corrupt if row[1] < to_step]
        self.num_interruptions[name] = self.num_interruptions.get(name, 0) + 1
        if self.nodes.since_s != now_s:
            self.nodes.tick(now_s)
        self.nodes.steps = False
        return outage

    def _count(self, name: str) -> None:
        self.num_interruptions[name] = self.num_interruptions.get(name, 0) + 1

    def _know(self, name: str, fault: Fault | None = None) -> None:
        """It takes until ``until_s`` to know what is wrong, or for what was ordered."""
        outage = self._outage
        assert outage is not None
        self._turn = turn = self._turn + 1
        if self.is_logged:
            outage.fault = (name, outage.kind if fault is None else fault.kind, outage.node if fault is None else fault.node)
            if outage.phase is not DETECTING or outage.until_s <= self.kernel.now_s:
                self.log.append(("fault", self.kernel.now_s, 0.0, *outage.fault))
        if self.kernel.fed_s <= outage.until_s:
            self._pass_over(outage.until_s)
        if self.kernel.jump(outage.until_s):
            self._book_down(outage.until_s)
            self._decide(outage)
        else:
            self.kernel.at(outage.until_s, self._on_known, turn, _FAULT)

    def _pass_over(self, until_s: float) -> None:
        """Leaves out the faults until then that nothing comes of, because the gang stands."""
        kernel, lucks, idle = self.kernel, self._lucks, self._idle
        place = kernel.fed_place
        while self.faults.times_s[place] <= until_s and lucks[place] >= idle:
            place += 1
            if place == len(lucks):
                break
        kernel.skip_to(place)

    def _blocked_within(self, lost: float) -> float:
        return self.setting.blocked_s * int(lost // self.progress.interval) if self.progress.interval else 0.0

    def _again(self, fault: Fault, kind: Kind) -> None:
        """Another fault while the gang stands: the tests that look for the first find it too. On the way back it is from detection on, all over."""
        now_s, outage = self.kernel.now_s, self._outage
        assert outage is not None
        if kind.needs_disk and not outage.is_disk:
            self._lose_copies(outage)
        self._count(kind.cause)
        if outage.phase is RETURNING:
            self._book_down(now_s)
            outage.phase, outage.until_s = DETECTING, now_s + fault.detect_s
            self._know(kind.cause, fault)
        elif self.is_logged:
            outage.echoes += ((kind.cause, fault.kind, fault.node),)

    def _lose_copies(self, outage: Outage) -> None:
        """The copies in memory that the gang was to go on from are lost as well."""
        outage.is_disk = True
        self.num_disk_losses += 1
        to_step = min(self.progress.disk, outage.to_step)
        more = outage.to_step - to_step
        more_s = more * self._pace.productive_s
        self.book[PRODUCTIVE] -= more_s
        self.book[LOST] += more_s
        self.lost_steps += more
        outage.to_step, outage.lost_s = to_step, outage.lost_s + more_s

    def _on_known(self, turn: int) -> None:
        if turn == self._turn and self._outage is not None:
            self._book_down(self.kernel.now_s)
            self._decide(self._outage)

    def _decide(self, outage: Outage) -> None:
        """What policy does with what is left, and how long that takes."""
        setting, nodes, kernel = self.setting, self.nodes, self.kernel
        nodes.settle(kernel.now_s)
        if self._suspects:
            self._take_out_suspects()
        decision = setting.decide(outage.kind, outage.reason, nodes.gang, nodes.spare, nodes.repair)
        action = decision.action
        outage.action, outage.why = action, decision.reason
        if self.is_logged:
            self.log.append(("recovery", kernel.now_s, action.value, decision.reason, decision.num_workers))
        if action is Action.GIVE_UP:
            self._give_up(decision.reason)
            return
        if action is Action.WAIT:
            outage.phase = WAITING
            self._turn += 1
            self._await()
            return
        if nodes.gang != decision.num_workers:
            nodes.tick(kernel.now_s)
            nodes.resize(decision.num_workers)
        self.num_recoveries += 1
        is_reform = setting.reforms and action is not Action.RESTART
        drawn = self.chance.swaps if is_reform else self.chance.starts
        start_s = self.chance.next_of(drawn)
        drawn.pop()
        restore_s = setting.restore_disk_s if outage.is_disk else setting.restore_memory_s
        compile_s = 0.0 if is_reform else setting.compile_s
        outage.plan_s = (start_s, restore_s, compile_s)
        outage.phase = RETURNING
        self._turn = turn = self._turn + 1
        back_s = kernel.now_s + start_s + restore_s + compile_s
        if kernel.fed_s <= back_s:
            self._pass_over(back_s)
        if kernel.jump(back_s):
            self._on_resumed(turn)
        else:
            kernel.at(back_s, self._on_resumed, turn, _BACK)

    def _give_up(self, reason: str) -> None:
        self.failed = reason
        self.kernel.clear()

    def _book_down(self, now_s: float) -> None:
        """Gives the time of the standstill up to now to the part it is in."""
        outage = self._outage
        if outage is None or now_s <= self._since_s:
            return
        elapsed_s, parts_s, book = now_s - self._since_s, outage.parts_s, self.book
        self._since_s = now_s
        if outage.phase is RETURNING:
            start_s, restore_s, compile_s = outage.plan_s
            took_s, restored_s, compiled_s = self._book_return(elapsed_s, outage.plan_s)
            outage.plan_s = (start_s - took_s, restore_s - restored_s, compile_s - compiled_s)
            parts_s[2] += took_s
            parts_s[3] += restored_s
            parts_s[4] += compiled_s
            if self.is_logged:
                self.log.append(("return", now_s, (took_s, restored_s, compiled_s), outage.to_step, outage.action, self.nodes.gang, outage.is_disk))
        elif outage.phase is DETECTING:
            book[DETECT] += elapsed_s
            parts_s[0] += elapsed_s
            if self.is_logged:
                self.log.append(("fault", now_s, elapsed_s, *outage.fault))
        else:
            saved_s = min(elapsed_s, outage.save_s)
            outage.save_s -= saved_s
            book[CHECKPOINT] += saved_s
            book[WAIT] += elapsed_s - saved_s
            parts_s[1] += elapsed_s
            if self.is_logged:
                self.log.append(("wait", now_s, saved_s, elapsed_s - saved_s, outage.from_step, outage.why or outage.reason))
        if outage.echoes:
            self.log.extend(("fault", now_s, 0.0, *echo) for echo in outage.echoes)
            outage.echoes = ()
        if self.is_kept:
            self._mark(now_s)

    def _on_resumed(self, turn: int) -> None:
        outage = self._outage
        if turn != self._turn or outage is None:
            return
        now_s = self.kernel.now_s
        self._book_down(now_s)
        self._outage = None
        if self.is_kept or self.is_logged:
            self._keep(outage, now_s)
        self._begin(outage.to_step)

    def _keep(self, outage: Outage, now_s: float) -> None:
        row = IncidentRow(
            outage.begun_s, outage.kind, outage.node, str(outage.action), outage.why, outage.reason, outage.from_step, outage.to_step, outage.lost_s,
            tuple(outage.parts_s), "disk" if outage.is_disk else "ram",
        )  # fmt: skip
        self.incidents.append(row)
        if self.is_logged:
            self.log.append(("recovered", now_s, row))

    # Growing and limits

    def _grow(self) -> None:
        """Nodes are back: a gang that shrank takes them where that pays."""
        setting, nodes = self.setting, self.nodes
        possible = nodes.gang + nodes.spare
        size = setting.num_gang if possible >= setting.num_gang else setting.smaller(possible)
        rest_s = self.progress.remaining_s(self.num_steps, self._pace.step_s)
        if should_grow(num_workers=nodes.gang, num_possible=size, expected_s=min(rest_s, setting.mtbf_s), reform_s=setting.scenario.recovery.swap.mean_s):
            self._order("grown")

    def _on_limit(self, limit: Limit | None) -> None:
        """The site may draw less, or all it needs again."""
        if limit is not None and limit.is_outage:
            self._black_out(limit.end_s)
            return
        if self._outage is None:  # what was until now was at the speed until now
            self._close(self.kernel.now_s)
            self._mark(self.kernel.now_s)
        self._close(self.kernel.now_s)
        self._book_down(self.kernel.now_s)
        if self.is_kept:
            self._mark(self.kernel.now_s, is_due=True)
        self._speed = 1.0 if limit is None else limit.speed_fraction
        self._repace()

    # What is kept

    def _mark(self, now_s: float, *, is_due: bool = False) -> None:
        """The book and the nodes' seconds up to now; where a mark was made just before, only if it is due."""
        if is_due or now_s - self._marked_s >= self._resolution_s:
            self._marked_s = now_s
            self.nodes.settle(now_s)
            self.marks.extend(self.book)
            self.marks.extend((now_s, self._speed))
            self.marks.extend(self.nodes.seconds_at(now_s))

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
