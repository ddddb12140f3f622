"""One replica of a synchronous job on a machine that fails: what happens, what ``policy`` decides about it, what that costs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import pi, sin
from typing import TYPE_CHECKING, Any, NamedTuple

from colossus.policy.health import is_suspect, should_evict, should_grow
from colossus.policy.recovery import Action
from colossus.spec.causes import Cause
from colossus.spec.faults import Effect
from colossus.twin.faults import Fault, draw_faults, lemon_nodes
from colossus.twin.kernel import Kernel
from colossus.twin.nodes import GANG, REPAIR, Nodes
from colossus.twin.progress import Pace, Progress
from colossus.twin.setting import GRID, Setting
from colossus.twin.streams import draw, stream

if TYPE_CHECKING:
    from colossus.twin.power import Limit

# The book's lines. Lost work is told apart at the end of what was once productive.
BOOK = (
    *(Cause.PRODUCTIVE, Cause.CHECKPOINT, Cause.LOST_WORK, Cause.DETECT, Cause.WAIT_NODES, Cause.RESTART, Cause.RESTORE, Cause.RECOMPILE),
    *(Cause.STRAGGLER, Cause.FEWER_NODES, Cause.POWER_CAP, Cause.EVALUATION),
)
_PRODUCTIVE, _CHECKPOINT, _LOST, _DETECT, _WAIT, _RESTART, _RESTORE, _RECOMPILE, _STRAGGLER, _FEWER, _CAP, _CHECK = range(len(BOOK))
# A row of the course: the book, then these.
MARK = ("time_s", "speed")
# A day's course of temperature in steps of so long.
_DIURNAL_S, _DAY_S = 6 * 3600.0, 86400.0
# Events at one time: what comes back goes before what fails, and the end of the job before both.
_END, _BACK, _LIMIT, _FAULT = 0, 1, 2, 3
# The parts of a standstill.
_DETECTING, _WAITING, _PLANNED, _RETURNING = "detecting", "waiting", "planned", "returning"


class IncidentRow(NamedTuple):
    """One interruption; ``kind`` None: the grid's, or our own decision, as ``name`` says. Steps and seconds as in spec.simulation."""

    time_s: float
    kind: int | None
    node: int | None
    action: str
    reason: str
    name: str
    from_step: int
    to_step: int
    lost_s: float
    parts_s: tuple[float, ...]  # detect, wait, start, restore, compile
    source: str


class _Outage:
    """A standstill as it goes: when it began, why, what is known, and which part it is in."""

    __slots__ = (
        "action",
        "begun_s",
        "fault",
        "from_step",
        "is_disk",
        "kind",
        "lost_s",
        "node",
        "parts_s",
        "phase",
        "plan_s",
        "reason",
        "to_step",
        "until_s",
        "why",
    )

    def __init__(self, now_s: float, reason: str, to_step: int, is_disk: bool) -> None:
        self.begun_s = self.until_s = now_s
        self.kind: int | None = None
        self.node: int | None = None
        self.reason = reason
        self.from_step = self.to_step = to_step
        self.is_disk = is_disk
        self.lost_s = 0.0
        self.parts_s = [0.0, 0.0, 0.0, 0.0, 0.0]
        self.plan_s = (0.0, 0.0, 0.0)
        self.action = self.why = ""
        self.phase = _DETECTING
        self.fault: tuple[str, int | None, int | None] = (reason, None, None)


class Job:
    """Plays one replica to its end or the horizon. ``marks``: rows of MARK, its course, where it is kept; ``log``: what happened, in order, where it is logged."""

    def __init__(self, setting: Setting, *, seed: int, limits: Sequence[Limit] = (), is_kept: bool = False, is_logged: bool = False) -> None:
        self.setting = setting
        scenario, grounds = setting.scenario, setting.grounds
        self.limits = limits
        self.kernel = Kernel()
        self.nodes = Nodes(grounds.num_nodes, grounds.num_gang_nodes, is_kept=is_kept)
        self.progress = Progress()
        self.book = [0.0] * len(BOOK)
        self.faults: Sequence[Fault] = draw_faults(setting.profile, scenario, grounds, seed=seed)
        self.lemons = set(lemon_nodes(setting.profile, grounds, seed=seed).tolist())
        self.chance = _Chance(seed, scenario.recovery)
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
        self._history: dict[int, list[float]] = {}
        self._corrupt: list[tuple[float, int, Fault]] = []
        self._outage: _Outage | None = None
        self._turn = 0
        self._since_s = 0.0
        self._diurnal = 0.0
        self._idle = setting.profile.idle_fraction
        self._speed = 1.0
        self._pace = self._pace_now()
        self.is_kept, self.is_logged = is_kept, is_logged
        self.log: list[tuple[Any, ...]] = []
        self.marks = array("d")
        self.rewinds: list[tuple[float, float]] = []
        self._span = Span(0.0, 0, [], 0)

    def run(self) -> None:
        setting, kernel = self.setting, self.kernel
        horizon_s = setting.scenario.horizon_s
        if self.faults:
            kernel.at(self.faults[0].time_s, self._on_fault, 0, _FAULT)
        if setting.scenario.stragglers.diurnal_fraction:
            self._on_hour(None)
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
            self._mark(end_s)
            self._tell_steps()
        self.nodes.tick(self.wall_s)

    @property
    def wall_s(self) -> float:
        return self._since_s

    # Stepping

    def _begin(self, step: int) -> None:
        """The gang steps from ``step`` on."""
        now_s, setting = self.kernel.now_s, self.setting
        self.nodes.tick(now_s)
        self.nodes.steps = True
        self._pace = self._pace_now()
        interval, self.interval_reason = setting.interval_steps(self._pace.step_s, num_disk_losses=self.num_disk_losses, elapsed_s=now_s)
        self.progress.begin(step, interval=interval, blocked_s=setting.blocked_s, save_s=setting.save_s)
        self._since_s = now_s
        if self.is_kept:
            self._mark(now_s)
        if self.is_logged:
            self._span = Span(now_s, step, list(self.book), self.progress.num_saves)
        self._schedule_end()

    def _schedule_end(self) -> None:
        self._turn += 1
        now_s = self.kernel.now_s
        if now_s + (self.num_steps - self.progress.at) * self._pace.step_s > self._horizon_s:
            return
        end_s = now_s + self.progress.remaining_s(self.num_steps, self._pace.step_s)
        if end_s <= self._horizon_s:
            self.kernel.at(end_s, self._on_end, self._turn, _END)

    def _on_end(self, turn: int) -> None:
        if turn != self._turn or self._outage is not None:
            return
        self._close(self.kernel.now_s)
        self._finish_exactly()
        self.is_done = True
        self._mark(self.kernel.now_s)
        self._tell_steps()
        self.kernel.clear()

    def _finish_exactly(self) -> None:
        """Rounding must not leave a part of the last step undone."""
        self.book[_PRODUCTIVE] = self.num_steps * self._pace.productive_s
        self.progress.at = float(self.num_steps)

    def _close(self, now_s: float) -> None:
        """Books the time of steps up to now."""
        elapsed_s = now_s - self._since_s
        if self._outage is None and elapsed_s > 0:
            pace, book = self._pace, self.book
            done, blocked_s = self.progress.advance(now_s, elapsed_s, pace.step_s)
            book[_PRODUCTIVE] += done * pace.productive_s
            book[_CHECKPOINT] += blocked_s + done * pace.copy_s
            if pace.is_longer:
                book[_STRAGGLER] += done * pace.straggler_s
                book[_FEWER] += done * pace.fewer_s
                book[_CAP] += done * pace.cap_s
                book[_CHECK] += done * pace.check_s
            self.stepping_s += elapsed_s - blocked_s
            self._since_s = now_s

    def _pace_now(self) -> Pace:
        return self.setting.pace(self.nodes.gang, max(self._slow.values()) if self._slow else 0.0, self._diurnal, self._speed)

    def _repace(self) -> None:
        """The step takes another time from now on."""
        if self._outage is None:
            self._close(self.kernel.now_s)
            self._mark(self.kernel.now_s)
            self._pace = self._pace_now()
            self._schedule_end()

    def _on_hour(self, _: None) -> None:
        now_s = self.kernel.now_s
        most = self.setting.scenario.stragglers.diurnal_fraction
        self._diurnal = most * 0.5 * (1 + sin(2 * pi * ((now_s + _DIURNAL_S / 2) / _DAY_S - 0.375)))  # hottest at three in the afternoon
        if now_s:
            self._repace()
        self.kernel.after(_DIURNAL_S, self._on_hour, None, _LIMIT)

    # Faults

    def _on_fault(self, place: int) -> None:
        faults, setting = self.faults, self.setting
        fault = faults[place]
        if place + 1 < len(faults):
            self.kernel.at(faults[place + 1].time_s, self._on_fault, place + 1, _FAULT)
        kind = setting.kinds[fault.kind]
        if kind.is_of_job:
            if self._outage is None:  # a job that does not run has no bugs, and needs no stop
                self.num_faults[fault.kind] += 1
                self._interrupt(fault)
            return
        place_of_node = self.nodes.place[fault.node]
        if place_of_node == REPAIR or (fault.is_lemons and fault.node not in self.lemons):
            return
        is_gang = place_of_node == GANG
        if self._idle < 1 and fault.luck >= self._idle and not (is_gang and self._outage is None):
            return
        self.num_faults[fault.kind] += 1
        if kind.effect is Effect.SLOW:
            self._slow_down(fault, is_gang)
        elif kind.effect is Effect.CORRUPT:
            self._corrupts(fault, is_gang)
        elif self._take_down(fault, kind.group):
            self._interrupt(fault)

    def _take_down(self, fault: Fault, size: int) -> bool:
        """A group of nodes goes into repair; whether the gang lost any."""
        self.nodes.tick(self.kernel.now_s)
        if size <= 1:
            return self._fail(fault.node, fault)
        first = fault.node // size * size
        hit = [self._fail(node, fault) for node in range(first, min(first + size, self.nodes.num_nodes))]
        return any(hit)

    def _fail(self, node: int, fault: Fault) -> bool:
        nodes, now_s = self.nodes, self.kernel.now_s
        if nodes.place[node] == REPAIR:
            return False
        was_gang = nodes.fail(node)
        self._slow.pop(node, None)
        repair_s, is_thorough = fault.repair_s, False
        recovery_scenario = self.setting.scenario.recovery
        if recovery_scenario.drain_after_faults is not None:
            times_s = self._history.setdefault(node, [])
            times_s.append(now_s)
            if is_suspect(times_s, now_s=now_s, window_s=recovery_scenario.drain_window_s, num_faults=recovery_scenario.drain_after_faults):
                repair_s, is_thorough = self.chance.drain_s(), True
                times_s.clear()
        is_mended = is_thorough or fault.luck >= self.setting.profile.failed_repair_fraction
        self.kernel.at(now_s + repair_s, self._on_back, (node, is_mended), _BACK)
        return was_gang

    def _on_back(self, told: tuple[int, bool]) -> None:
        node, is_mended = told
        self.nodes.tick(self.kernel.now_s)
        self.nodes.mend(node)
        if is_mended:
            self.lemons.discard(node)
        outage = self._outage
        if outage is not None and outage.phase is _WAITING and outage.action == Action.WAIT.value:
            self._book_down(self.kernel.now_s)
            self._decide(outage)
        elif outage is None and self.nodes.gang < self.setting.num_gang:
            self._grow()

    def _slow_down(self, fault: Fault, is_gang: bool) -> None:
        """A chip is slower until it is repaired, or swapped out."""
        kind = self.setting.kinds[fault.kind]
        if not is_gang:
            self._take_down(fault, kind.group)
            return
        self._slow[fault.node] = max(kind.slowdown_fraction, self._slow.get(fault.node, 0.0))
        self._repace()
        self.kernel.at(self.kernel.now_s + fault.repair_s, self._on_fast, fault.node, _BACK)
        scenario = self.setting.scenario.recovery
        swap_s = scenario.swap.mean_s if self.setting.reforms else scenario.start.mean_s + scenario.compile.mean_s
        if scenario.evict_slow and should_evict(slowdown_fraction=kind.slowdown_fraction, expected_s=kind.mean_repair_s, swap_s=swap_s):
            self.kernel.at(self.kernel.now_s + self.chance.evict_s(), self._on_evict, fault, _FAULT)

    def _on_fast(self, node: int) -> None:
        if self._slow.pop(node, None) is not None:
            self._repace()

    def _on_evict(self, fault: Fault) -> None:
        """The slow node is known: out with it, where a spare is at hand and the job runs."""
        if fault.node in self._slow and self.nodes.spare and self._outage is None:
            self.nodes.tick(self.kernel.now_s)
            self._fail(fault.node, fault)
            self._interrupt(fault, why="evicted")

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
        self.nodes.tick(self.kernel.now_s)
        self._fail(fault.node, fault)
        self._interrupt(fault, clean=(found[0], found[1]))

    # Standing still

    def _interrupt(self, fault: Fault | None, *, why: str | None = None, clean: tuple[float, int] | None = None, until_s: float | None = None) -> None:
        """The gang stands. ``why``: our own decision. ``clean``: when and at which step the state was last good. ``until_s``: when the grid is back."""
        if self._outage is not None:
            if fault is not None:
                self._again(fault)
            return
        now_s, setting, progress = self.kernel.now_s, self.setting, self.progress
        self._close(now_s)
        kind = setting.kinds[fault.kind] if fault is not None and why is None else None
        is_planned = kind is not None and kind.effect is Effect.PLANNED
        is_disk = kind.needs_disk if kind is not None else until_s is not None
        to_step = self._step_to_restore(is_whole=is_planned or why is not None, is_disk=is_disk, clean=clean)
        at = progress.at
        name = kind.cause if kind is not None else why or GRID
        outage = _Outage(now_s, name, to_step, is_disk or setting.memory_steps is None)
        if fault is not None:
            outage.kind = None if why else fault.kind
            outage.node = None if kind is not None and kind.is_of_job else fault.node
        if self.is_logged:
            self._tell_steps(to_step, progress.disk)
        if self.is_kept:
            self._mark(now_s)
        if at > to_step:
            self._lose(outage, at - to_step, now_s, clean)
        outage.from_step = int(at)
        self.num_disk_losses += is_disk
        self.num_interruptions[name] = self.num_interruptions.get(name, 0) + 1
        if self._corrupt:
            self._corrupt = [row for row in self._corrupt if row[1] < to_step]
        if clean is not None:
            progress.disk = to_step
        self._outage = outage
        self.nodes.tick(now_s)
        self.nodes.steps = False
        if fault is None or why is not None:
            outage.until_s = until_s or now_s
            outage.phase = _DETECTING if until_s is None else _WAITING
        elif is_planned:
            outage.phase, outage.until_s = _PLANNED, now_s + setting.save_s + fault.repair_s
        else:
            outage.until_s = now_s + (fault.detect_s if clean is None else setting.scenario.recovery.sdc_check_s)
        self._know(name)

    def _lose(self, outage: _Outage, lost: float, now_s: float, clean: tuple[float, int] | None) -> None:
        """So many steps were done for nothing."""
        pace = self._pace
        if self.is_kept:
            since_s = clean[0] if clean else now_s - lost * pace.step_s - self._blocked_within(lost)
            self.rewinds.append((max(0.0, since_s), now_s))
        outage.lost_s = lost_s = lost * pace.productive_s
        self.book[_PRODUCTIVE] -= lost_s
        self.book[_LOST] += lost_s
        self.lost_steps += int(self.progress.at) - outage.to_step

    def _step_to_restore(self, *, is_whole: bool, is_disk: bool, clean: tuple[float, int] | None) -> int:
        """Where the gang will go on from; a stop in good order saves what there is."""
        progress = self.progress
        saved = progress.committed(self.kernel.now_s)
        if clean is not None:
            return min(clean[1], saved)
        if is_whole:
            return int(progress.at)
        return saved if is_disk or self.setting.memory_steps is None else progress.in_memory(self.setting.memory_steps)

    def _know(self, name: str, fault: Fault | None = None) -> None:
        """It takes until ``until_s`` to know what is wrong, or for what was ordered."""
        outage = self._outage
        assert outage is not None
        self._turn = turn = self._turn + 1
        outage.fault = (name, outage.kind if fault is None else fault.kind, outage.node if fault is None else fault.node)
        if self.is_logged and (outage.phase is not _DETECTING or outage.until_s <= self.kernel.now_s):
            self.log.append(("fault", self.kernel.now_s, 0.0, *outage.fault))
        if self.kernel.jump(outage.until_s):
            self._on_known(turn)
        else:
            self.kernel.at(outage.until_s, self._on_known, turn, _FAULT)

    def _blocked_within(self, lost: float) -> float:
        return self.setting.blocked_s * int(lost // self.progress.interval) if self.progress.interval else 0.0

    def _again(self, fault: Fault) -> None:
        """Another fault while the gang is on its way back: from detection on, all over."""
        now_s, outage = self.kernel.now_s, self._outage
        assert outage is not None
        self._book_down(now_s)
        kind = self.setting.kinds[fault.kind]
        if kind.needs_disk and not outage.is_disk:
            self._lose_copies(outage)
        self.num_interruptions[kind.cause] = self.num_interruptions.get(kind.cause, 0) + 1
        known_s = now_s + fault.detect_s
        if outage.phase is _RETURNING or outage.action:
            outage.phase, outage.action, outage.until_s = _DETECTING, "", known_s
        else:  # both are known when the later is; the grid's end, and a stop's, are waited for
            outage.until_s = max(known_s, outage.until_s)
        self._know(kind.cause, fault)

    def _lose_copies(self, outage: _Outage) -> None:
        """The copies in memory that the gang was to go on from are lost as well."""
        outage.is_disk = True
        self.num_disk_losses += 1
        to_step = min(self.progress.disk, outage.to_step)
        more = outage.to_step - to_step
        more_s = more * self._pace.productive_s
        self.book[_PRODUCTIVE] -= more_s
        self.book[_LOST] += more_s
        self.lost_steps += more
        outage.to_step, outage.lost_s = to_step, outage.lost_s + more_s

    def _on_known(self, turn: int) -> None:
        if turn == self._turn and self._outage is not None:
            self._book_down(self.kernel.now_s)
            self._decide(self._outage)

    def _decide(self, outage: _Outage) -> None:
        """What policy does with what is left, and how long that takes."""
        setting, nodes, kernel = self.setting, self.nodes, self.kernel
        decision = setting.decide(outage.kind, outage.reason, num_gang=nodes.gang, num_spares=nodes.spare, num_repair=nodes.repair)
        outage.action, outage.why = decision.action.value, decision.reason
        if self.is_logged:
            self.log.append(("recovery", kernel.now_s, decision.action.value, decision.reason, decision.num_workers))
        if decision.action is Action.GIVE_UP:
            self._give_up(decision.reason)
            return
        if decision.action is Action.WAIT:
            outage.phase = _WAITING
            self._turn += 1
            return
        if nodes.gang != decision.num_workers:
            nodes.tick(kernel.now_s)
            nodes.resize(decision.num_workers)
        self.num_recoveries += 1
        is_reform = setting.reforms and decision.action is not Action.RESTART
        start_s = self.chance.swap_s() if is_reform else self.chance.start_s()
        restore_s = setting.restore_disk_s if outage.is_disk else setting.restore_memory_s
        compile_s = 0.0 if is_reform else setting.compile_s
        outage.plan_s = (start_s, restore_s, compile_s)
        outage.phase = _RETURNING
        self._turn = turn = self._turn + 1
        back_s = kernel.now_s + start_s + restore_s + compile_s
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
        if outage.phase is _RETURNING:
            start_s, restore_s, compile_s = outage.plan_s
            took_s = min(elapsed_s, start_s)
            restored_s = min(elapsed_s - took_s, restore_s) if compile_s else elapsed_s - took_s
            compiled_s = elapsed_s - took_s - restored_s if compile_s else 0.0
            book[_RESTART] += took_s
            book[_RESTORE] += restored_s
            book[_RECOMPILE] += compiled_s
            parts_s[2] += took_s
            parts_s[3] += restored_s
            parts_s[4] += compiled_s
            if self.is_logged:
                self.log.append(("return", now_s, (took_s, restored_s, compiled_s), outage.to_step, outage.action, self.nodes.gang, outage.is_disk))
        elif outage.phase is _DETECTING:
            book[_DETECT] += elapsed_s
            parts_s[0] += elapsed_s
            if self.is_logged:
                self.log.append(("fault", now_s, elapsed_s, *outage.fault))
        else:
            saved_s = min(elapsed_s, self.setting.save_s) if outage.phase is _PLANNED else 0.0
            book[_CHECKPOINT] += saved_s
            book[_WAIT] += elapsed_s - saved_s
            parts_s[1] += elapsed_s
            if self.is_logged:
                self.log.append(("wait", now_s, saved_s, elapsed_s - saved_s, outage.from_step, outage.why or outage.reason))
        if self.is_kept:
            self._mark(now_s)

    def _on_resumed(self, turn: int) -> None:
        outage = self._outage
        if turn != self._turn or outage is None:
            return
        now_s = self.kernel.now_s
        self._book_down(now_s)
        row = IncidentRow(
            outage.begun_s, outage.kind, outage.node, outage.action, outage.why, outage.reason, outage.from_step, outage.to_step, outage.lost_s,
            tuple(outage.parts_s), "disk" if outage.is_disk else "ram",
        )  # fmt: skip
        self.incidents.append(row)
        self._outage = None
        if self.is_logged:
            self.log.append(("recovered", now_s, row))
        self._begin(outage.to_step)

    # Growing and limits

    def _grow(self) -> None:
        """Nodes are back: a gang that shrank takes them where that pays."""
        setting, nodes = self.setting, self.nodes
        size = min(nodes.gang + nodes.spare, setting.num_gang) // setting.replica_nodes * setting.replica_nodes
        if nodes.gang + nodes.spare >= setting.num_gang:
            size = setting.num_gang
        rest_s = self.progress.remaining_s(self.num_steps, self._pace.step_s)
        if should_grow(num_workers=nodes.gang, num_possible=size, expected_s=min(rest_s, setting.mtbf_s), reform_s=setting.scenario.recovery.swap.mean_s):
            self._interrupt(None, why="grown")

    def _on_limit(self, limit: Limit | None) -> None:
        """The site may draw less, or all it needs again."""
        if limit is not None and limit.is_outage:
            self._black_out(limit.end_s)
            return
        self._speed = 1.0 if limit is None else limit.speed_fraction
        self._repace()

    def _black_out(self, until_s: float) -> None:
        """All nodes stand without power until then; copies in memory are gone."""
        if self._outage is None:
            self._interrupt(None, until_s=until_s)
            return
        self._book_down(self.kernel.now_s)
        if not self._outage.is_disk:
            self._lose_copies(self._outage)
        self.num_interruptions[GRID] = self.num_interruptions.get(GRID, 0) + 1
        self._outage.kind, self._outage.reason = None, GRID
        self._outage.phase, self._outage.action, self._outage.until_s = _WAITING, "", until_s
        self._know(GRID)

    # What is kept

    def _mark(self, now_s: float) -> None:
        """The book as it was up to now."""
        if self.is_kept:
            self.marks.extend(self.book)
            self.marks.extend((now_s, self._speed))

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


class Span(NamedTuple):
    """Where steps began that are not logged yet: when, at which step, with what in the book and how many saves."""

    begun_s: float
    step: float
    book: list[float]
    num_saves: int


class _Chance:
    """Durations of recovery, drawn by the hundred."""

    __slots__ = ("_drain", "_evict", "_recovery", "_rng", "_start", "_swap")

    def __init__(self, seed: int, scenario: Any) -> None:
        self._rng = stream(seed, "recovery")
        self._recovery = scenario
        self._swap: list[float] = []
        self._start: list[float] = []
        self._drain: list[float] = []
        self._evict: list[float] = []

    def _next(self, kept: list[float], duration: Any) -> float:
        if not kept:
            kept.extend(draw(duration, self._rng, 64).tolist())
        return kept.pop()

    def swap_s(self) -> float:
        return self._next(self._swap, self._recovery.swap)

    def start_s(self) -> float:
        return self._next(self._start, self._recovery.start)

    def drain_s(self) -> float:
        return self._next(self._drain, self._recovery.drain_repair)

    def evict_s(self) -> float:
        return self._next(self._evict, self._recovery.evict_detect)
